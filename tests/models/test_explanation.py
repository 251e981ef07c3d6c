"""Integrated gradients are complete, Grad-CAM is its definition, and both look where the score comes from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.calibration_set import calibrate
from models.configuration import DetectorConfiguration
from models.densities import (
    DENSITIES,
    DensityConfiguration,
    GaussianDensityConfiguration,
    GaussianMixtureConfiguration,
    KernelDensityConfiguration,
    NearestNeighboursConfiguration,
    OneClassSVMConfiguration,
    RotationClassifier,
    RotationClassifierConfiguration,
    create_density,
)
from models.densities.reduction import ReductionConfiguration
from models.detector import Detector
from models.encoders import (
    DensePatchConfiguration,
    Encoder,
    EncoderConfiguration,
    PretrainedPatchConfiguration,
    ResNet18PatchConfiguration,
    create_encoder,
)
from models.explanation import (
    DEFAULT_STEPS,
    Method,
    NotExplainable,
    _member_grad_cam,
    _PeakScore,
    check_explainable,
    explain,
)
from models.geometry import Box, ScanGeometry
from models.heads import ROTATIONS, projection_head
from models.heatmap import peak_window
from models.images import place_image, read_image
from models.inference import FLOAT32
from models.region_of_interest import RegionOfInterest
from models.scan import Scan, combine
from training.data import open_dataset
from training.fit import FitConfiguration, fit
from training.synthetic import generate
from training.trainer import TrainingConfiguration

CPU = torch.device("cpu")
GEOMETRY = ScanGeometry(image_size=64)
COARSE = ScanGeometry(image_size=64, stride=16)  # for the encoder that embeds every window by itself
ENCODERS: dict[str, EncoderConfiguration] = {
    "stages": DensePatchConfiguration(width=4),
    "last": DensePatchConfiguration(width=4, embedding="last"),
    "resnet18": ResNet18PatchConfiguration(),
    "pretrained": PretrainedPatchConfiguration(),
}
INDEPENDENT = ("stages", "last", "resnet18")
KINDS: dict[str, DensityConfiguration] = {
    "kde": KernelDensityConfiguration(),
    "compressed": KernelDensityConfiguration(
        mode="compressed", centres=40, reduction=ReductionConfiguration(dimension=20)
    ),
    "neighbours": KernelDensityConfiguration(mode="neighbours"),
    "svm": OneClassSVMConfiguration(),
    "linear": OneClassSVMConfiguration(kernel="linear"),
    "gaussian": GaussianDensityConfiguration(),
    "mixture": GaussianMixtureConfiguration(components=2),
    "nearest": NearestNeighboursConfiguration(),
}
COMPLETE = 0.02  # of all that the attributions move, up and down: the integral's error at DEFAULT_STEPS


def part(seed: int, size: int = 64) -> NDArray[np.uint8]:
    """A plate with a light gradient and noise; every tenth has a bright bar."""
    random = np.random.default_rng(seed)
    light = np.linspace(90, 160, size)[None, :, None] * np.array([1.0, 0.8, 0.6])
    image: NDArray[np.uint8] = (light + random.normal(0, 8, (size, size, 3))).astype(np.uint8)
    if seed % 10 == 0:
        image[20:44, 30:36] = 230
    return image


DEFECTIVE = part(50)


@cache
def member(encoder_name: str, density: DensityConfiguration = KINDS["kde"], seed: int = 0) -> Scan:
    """An untrained encoder and a density of the windows of good parts."""
    torch.manual_seed(seed)
    geometry = COARSE if encoder_name == "resnet18" else GEOMETRY
    configuration = DetectorConfiguration(
        geometry=geometry, encoder=ENCODERS[encoder_name], density=density, inference=FLOAT32
    )
    encoder = create_encoder(configuration.encoder, geometry)
    scan = Scan(configuration, encoder, create_density(density), CPU)
    scan.density.fit(scan.embed(np.stack([part(number) for number in range(1, 5)])).flatten(0, 2).numpy())
    return scan


def detector_of(*members: Scan) -> Detector:
    scan, geometry = combine(members), members[0].configuration.geometry
    whole = Box(x=0, y=0, width=geometry.image_size, height=geometry.image_size)
    calibration_set = calibrate(scan, geometry, np.stack([part(number) for number in range(5, 8)]), [whole] * 3)
    return Detector("plate", scan, calibration_set, data_fingerprint="0" * 64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, NDArray[np.uint8]]:
    """What training makes of a synthetic product, and a defective part of it."""
    root = tmp_path_factory.mktemp("data")
    generate(root, "tile", train=10, test_good=1, test_defects=1, image_size=64)
    dataset = open_dataset(root, "tile")
    configuration = FitConfiguration(
        detector=DetectorConfiguration(geometry=GEOMETRY, encoder=DensePatchConfiguration(width=8), inference=FLOAT32),
        training=TrainingConfiguration(steps=40, batch_size=16, crop_patches=1),
        bank_size=400,
    )
    fitted = fit(dataset, configuration, device=CPU, folder=tmp_path_factory.mktemp("run"))
    path = next(sample.path for sample in dataset.test if sample.mask is not None)
    return fitted.detector, read_image(path)


# --- integrated gradients ---------------------------------------------------------------------------------------------


def assert_complete(detector: Detector, image: NDArray[np.uint8], steps: int, tolerance: float) -> None:
    """What the attributions add up to is the difference of the scores, which something there has made."""
    explanation = explain(detector, image, steps=steps)
    assert explanation.baseline_score is not None
    moved = float(np.abs(explanation.attributions).sum())
    assert moved > 1e-3
    difference = explanation.prediction.image_score - explanation.baseline_score
    assert abs(explanation.total - difference) < tolerance * moved
    assert explanation.missed * abs(difference) == pytest.approx(abs(explanation.total - difference), abs=1e-6)


def test_attributions_of_a_trained_detector_add_up_to_the_difference_of_the_scores(
    trained: tuple[Detector, NDArray[np.uint8]],
) -> None:
    assert_complete(*trained, DEFAULT_STEPS, COMPLETE)
    assert_complete(*trained, 1024, 0.001)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_completeness_with_every_encoder(encoder: str) -> None:
    assert_complete(detector_of(member(encoder)), DEFECTIVE, DEFAULT_STEPS, COMPLETE)


@pytest.mark.parametrize("kind", KINDS)
def test_completeness_with_every_density(kind: str) -> None:
    assert_complete(detector_of(member("stages", KINDS[kind])), DEFECTIVE, DEFAULT_STEPS, COMPLETE)


def test_completeness_of_an_ensemble() -> None:
    assert_complete(
        detector_of(*(member("stages", seed=seed) for seed in range(3))), DEFECTIVE, DEFAULT_STEPS, COMPLETE
    )


@pytest.mark.parametrize("method", get_args(Method))
def test_members_that_are_the_same_are_explained_as_one(method: Method) -> None:
    one, three = (explain(detector_of(*[member("stages")] * count), DEFECTIVE, method) for count in (1, 3))
    np.testing.assert_allclose(three.attributions, one.attributions, rtol=0, atol=1e-6)
    assert three.baseline_score == pytest.approx(one.baseline_score)


def image_score(detector: Detector, pixels: Tensor) -> Tensor:
    """The slow definition: the maximum over the scores of all windows of the image."""
    scores = []
    for scan in detector.scan.members:
        embeddings = scan.encoder(pixels)[0]
        scores.append(-scan.density.scores(embeddings.flatten(1).T))
    return torch.stack(scores).mean(dim=0).max()


@pytest.mark.parametrize("encoder", INDEPENDENT)
def test_the_gradient_of_the_image_score_is_that_of_the_peak_window_alone(encoder: str) -> None:
    """Why it is enough to explain that window."""
    detector = detector_of(member(encoder))
    [prediction] = detector.predict([DEFECTIVE])
    geometry = detector.geometry
    box = geometry.window(*peak_window(prediction.score_map, geometry, prediction.placement.content))
    area = np.s_[..., box.y : box.y + box.height, box.x : box.x + box.width]
    pixels = detector.scan.members[0].pixels(DEFECTIVE[None]).requires_grad_()
    [whole] = torch.autograd.grad(image_score(detector, pixels), pixels)
    window = pixels.detach()[area].clone().requires_grad_()
    [alone] = torch.autograd.grad(image_score(detector, window), window)
    torch.testing.assert_close(whole[area], alone, rtol=1e-3, atol=1e-6)
    assert whole[area].abs().max() > 1e-3
    whole[area] = 0
    assert whole.abs().max() < 1e-6


def test_attributions_are_the_integral_of_the_gradient() -> None:
    """By the midpoint rule, step by step."""
    detector = detector_of(member("stages"))
    explanation = explain(detector, DEFECTIVE, steps=512)
    box = explanation.window
    window = DEFECTIVE[box.y : box.y + box.height, box.x : box.x + box.width]
    end = detector.scan.members[0].pixels(window[None])
    start = torch.ones_like(end) * end.mean(dim=(2, 3), keepdim=True)
    total, steps = torch.zeros_like(end), 800
    for step in range(steps):
        at = (start + (step + 0.5) / steps * (end - start)).requires_grad_()
        total += torch.autograd.grad(image_score(detector, at), at)[0] / steps
    expected = ((end - start) * total).sum(dim=1)[0].numpy()
    found = explanation.attributions[box.y : box.y + box.height, box.x : box.x + box.width]
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * np.abs(expected).max())
    assert float(image_score(detector, start).detach()) == pytest.approx(explanation.baseline_score, abs=1e-5)


def test_an_image_larger_than_what_is_taken_at_once_is_explained_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = detector_of(member("stages"))
    together = explain(detector, DEFECTIVE, steps=8)
    monkeypatch.setattr("models.explanation.PIXELS_AT_ONCE", 1)
    alone = explain(detector, DEFECTIVE, steps=8)
    np.testing.assert_allclose(alone.attributions, together.attributions, rtol=0, atol=1e-6)


# --- Grad-CAM ---------------------------------------------------------------------------------------------------------


def slow_grad_cam(detector: Detector, pixels: Tensor, layer: nn.Module, first: float, step: int) -> NDArray[np.float64]:
    """Of the image score of ``pixels``, pixel by pixel: relu of the mean gradient times the feature, over channels."""
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = image_score(detector, pixels.requires_grad_())
    hook.remove()
    [gradient] = torch.autograd.grad(score, kept)
    features = kept[0].detach()
    cells = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)[0].double().numpy()
    size, last = pixels.shape[-1], len(cells) - 1
    values = np.zeros((size, size))
    for y in range(size):
        for x in range(size):
            row, column = (min(max((position - first) / step, 0), last) for position in (y, x))
            i, j = (min(int(position), max(last - 1, 0)) for position in (row, column))
            below, right = min(i + 1, last), min(j + 1, last)
            u, v = row - i, column - j
            values[y, x] = (1 - u) * ((1 - v) * cells[i, j] + v * cells[i, right]) + u * (
                (1 - v) * cells[below, j] + v * cells[below, right]
            )
    return np.maximum(values, 0)


def test_members_of_an_ensemble_lower_what_others_raise() -> None:
    members = [member("stages", seed=seed) for seed in range(3)]
    explanation = explain(detector_of(*members), DEFECTIVE, "grad_cam")
    window = explanation.window.crop(DEFECTIVE)
    each = torch.stack([_member_grad_cam(_PeakScore(members, 0, 0), one, one.pixels(window[None])) for one in members])
    expected = each.mean(dim=0).clamp_min(0)
    assert (each.clamp_min(0).mean(dim=0) - expected).abs().max() > 0.1 * expected.max()
    np.testing.assert_allclose(explanation.window.crop(explanation.attributions), expected, rtol=1e-4, atol=1e-8)


def test_the_peak_that_is_explained_lies_in_the_region_of_interest() -> None:
    detector = detector_of(member("stages"))
    whole = explain(detector, DEFECTIVE, "grad_cam")
    mask = np.zeros((2, 2), np.bool_)
    mask[:, int(whole.window.x < 16)] = True  # the other side
    region = RegionOfInterest.of_mask(mask)
    operation = detector.own_operation.model_copy(update={"region_of_interest": region})
    explanation = explain(detector, DEFECTIVE, "grad_cam", operation=operation)
    prediction = explanation.prediction
    peak = peak_window(prediction.score_map, detector.geometry, prediction.placement.content, region)
    assert explanation.window == detector.geometry.window(*peak) != whole.window


@pytest.mark.parametrize("encoder", ENCODERS)
def test_grad_cam_is_its_definition(encoder: str) -> None:
    for seed in range(8):
        detector = detector_of(member(encoder, seed=seed))
        explanation = explain(detector, DEFECTIVE, "grad_cam")
        box = explanation.window
        area = np.s_[box.y : box.y + box.height, box.x : box.x + box.width] if encoder in INDEPENDENT else np.s_[:, :]
        pixels = detector.scan.members[0].pixels(DEFECTIVE[area][None])
        expected = slow_grad_cam(detector, pixels, *detector.scan.members[0].encoder.grad_cam_grid())
        np.testing.assert_allclose(explanation.attributions[area], expected, rtol=1e-3, atol=1e-7)
        assert explanation.baseline_score is None
        assert explanation.attributions.min() >= 0
        if expected.max() > 1e-4:
            return
    pytest.fail("no features raise any score")


@pytest.mark.parametrize(
    ("configuration", "geometry"),
    [
        (DensePatchConfiguration(width=2), ScanGeometry(image_size=96)),
        (ResNet18PatchConfiguration(), ScanGeometry(image_size=96, patch_size=96)),
        (ResNet18PatchConfiguration(stem="imagenet"), ScanGeometry(image_size=512, patch_size=512)),
        (PretrainedPatchConfiguration(), ScanGeometry(image_size=256)),
    ],
    ids=["dense", "resnet18", "resnet18 imagenet", "pretrained"],
)
def test_features_lie_where_they_are_said_to(configuration: EncoderConfiguration, geometry: ScanGeometry) -> None:
    """The pixels that a cell in the middle depends on, weighed by how much, have their centre at the cell's."""
    torch.manual_seed(0)
    encoder: Encoder = create_encoder(configuration, geometry).eval()
    grid = encoder.grad_cam_grid()
    features: list[Tensor] = []
    grid.layer.register_forward_hook(lambda module, inputs, output: features.append(output))
    pixels = torch.rand(1, 3, geometry.image_size, geometry.image_size).requires_grad_()
    encoder(pixels)
    [cells] = features
    k = cells.shape[2] // 2 - 1
    weights = torch.zeros(geometry.image_size)
    for channel in range(0, cells.shape[1], max(1, cells.shape[1] // 4)):
        [gradient] = torch.autograd.grad(cells[0, channel, k, k], pixels, retain_graph=True)
        weights += gradient.abs().sum(dim=(0, 1, 3))
    centroid = float((weights * torch.arange(geometry.image_size)).sum() / weights.sum())
    assert centroid == pytest.approx(grid.first + grid.step * k, abs=0.15 * grid.step)


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_explanation_lies_in_the_window_that_the_score_is_of(encoder: str, method: Method) -> None:
    detector = detector_of(member(encoder))
    explanation = explain(detector, DEFECTIVE, method, steps=8)
    [prediction] = detector.predict([DEFECTIVE])
    assert explanation.prediction.image_score == prediction.image_score
    box = explanation.window
    i, j = box.y // detector.geometry.stride, box.x // detector.geometry.stride
    assert prediction.score_map[i, j] == prediction.image_score
    outside = np.ones((64, 64), dtype=np.bool_)
    outside[box.y : box.y + box.height, box.x : box.x + box.width] = False
    assert explanation.attributions.shape == outside.shape
    assert (np.abs(explanation.attributions[outside]).max() == 0) == (encoder in INDEPENDENT)


def test_the_defect_raises_the_score() -> None:
    """Of a bright bar, the bar and its edges, not the plate around."""
    explanation = explain(detector_of(member("stages")), DEFECTIVE)
    rows, columns = np.nonzero(explanation.attributions > 0.5 * explanation.attributions.max())
    assert ((columns >= 27) & (columns < 39)).all()
    assert ((rows >= 17) & (rows < 47)).all()


@pytest.mark.parametrize("method", get_args(Method))
def test_an_image_of_any_size_in_a_letterbox(method: Method) -> None:
    scan = member("stages")
    configuration = scan.configuration.model_copy(update={"resize": "letterbox"})
    detector = detector_of(Scan(configuration, scan.encoder, scan.density, CPU))
    image = part(60, 100)[:, :70]
    explanation = explain(detector, image, method)
    _, placement = place_image(image, GEOMETRY.image_size, "letterbox")
    assert explanation.prediction.placement == placement
    rows, columns = GEOMETRY.windows_of(placement.content)
    assert explanation.prediction.image_score == explanation.prediction.score_map[np.ix_(rows, columns)].max()


@pytest.mark.parametrize("method", get_args(Method))
def test_an_image_of_one_colour_has_nothing_to_explain_but_its_colour(method: Method) -> None:
    explanation = explain(detector_of(member("stages")), np.full((80, 80, 3), 99, np.uint8), method)
    assert np.isfinite(explanation.attributions).all()
    if method == "integrated_gradients":
        assert np.abs(explanation.attributions).max() < 1e-6
        assert explanation.baseline_score == pytest.approx(explanation.prediction.image_score, abs=1e-5)


def test_a_rotation_classifier_cannot_be_explained() -> None:
    configuration = DetectorConfiguration(
        geometry=GEOMETRY, encoder=ENCODERS["stages"], density=RotationClassifierConfiguration()
    )
    encoder = create_encoder(configuration.encoder, GEOMETRY)
    density = RotationClassifier().adopt(projection_head(encoder.feature_dimension, 0, 8, ROTATIONS))
    detector = detector_of(Scan(configuration, encoder, density, CPU))
    with pytest.raises(NotExplainable, match=r"'plate' .* rotation_classifier") as refusal:
        explain(detector, DEFECTIVE)
    for name in DENSITIES.keys() - {"rotation_classifier"}:
        assert name in str(refusal.value)
    with pytest.raises(NotExplainable):
        check_explainable(detector)


def test_explaining_leaves_the_detector_as_it_is(tmp_path: Path) -> None:
    detector = detector_of(member("stages"))
    [before] = detector.predict([DEFECTIVE])
    for method in get_args(Method):
        explain(detector, DEFECTIVE, method)
    [after] = detector.predict([DEFECTIVE])
    np.testing.assert_array_equal(before.score_map, after.score_map)
    assert all(parameter.grad is None for parameter in detector.scan.members[0].encoder.parameters())
    assert not detector.scan.members[0].encoder.training


@pytest.mark.cuda
@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("encoder", ENCODERS)
def test_cuda_explains_as_the_cpu_does(encoder: str, method: Method, tmp_path: Path) -> None:
    detector = detector_of(member(encoder), member(encoder, seed=1))
    detector.save(tmp_path)
    on_cpu, on_cuda = (explain(Detector.load(tmp_path, device), DEFECTIVE, method) for device in ("cpu", "cuda"))
    assert on_cuda.window == on_cpu.window
    scale = np.abs(on_cpu.attributions).max()
    np.testing.assert_allclose(on_cuda.attributions, on_cpu.attributions, rtol=0, atol=0.02 * scale)
