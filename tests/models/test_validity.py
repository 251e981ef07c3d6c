"""Whether an image shows the product: blank frames and other products do not, whatever the encoder has learned."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.calibration import OperatingPoint
from models.calibration_set import calibrate
from models.configuration import DetectorConfiguration
from models.densities import RotationClassifier, RotationClassifierConfiguration, create_density
from models.detector import Detector
from models.encoders import (
    DensePatchConfiguration,
    EncoderConfiguration,
    PretrainedPatchConfiguration,
    ResNet18PatchConfiguration,
    create_encoder,
)
from models.geometry import Box, ScanGeometry
from models.heads import ROTATIONS, projection_head
from models.prediction import Verdict
from models.scan import Scan, combine
from models.validity import (
    LAYOUT_DIMENSION,
    Validity,
    blank_frames,
    distances,
    layout,
    summarise,
)
from training.fit import fit_validity

SIZE = 96
WHOLE = Box(x=0, y=0, width=SIZE, height=SIZE)
FINE, COARSE = ScanGeometry(image_size=SIZE), ScanGeometry(image_size=SIZE, stride=32)


def product(seed: int) -> NDArray[np.uint8]:
    """A white frame with a dark ring, somewhat off the middle, under a light that varies."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    radius = np.hypot(y - SIZE / 2 - random.uniform(-2, 2), x - SIZE / 2 - random.uniform(-2, 2))
    grey = np.where((radius > 24) & (radius < 36), 60.0, 230.0) * random.uniform(0.8, 1.1)
    return np.clip(grey[:, :, None] + random.normal(0, 3, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def other_product(seed: int) -> NDArray[np.uint8]:
    """Bars on the same white, as dark as the ring."""
    random = np.random.default_rng(seed)
    image = np.full((SIZE, SIZE, 3), 230.0)
    for start in range(8, SIZE, 24):
        image[start : start + 8, 10:-10] = 60
    return np.clip(image + random.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def stained(seed: int) -> NDArray[np.uint8]:
    """The product with a defect that nobody overlooks."""
    image = product(seed)
    image[40:56, 10:26] = (120, 30, 30)
    return image


PARTS = np.stack([product(seed) for seed in range(12)])
HELD_OUT = np.stack([product(seed) for seed in range(20, 29)])


def detector_of(*scans: Scan) -> Detector:
    scan = combine(scans)
    calibration_set = calibrate(scan, scans[0].configuration.geometry, HELD_OUT, [WHOLE] * len(HELD_OUT))
    validity = fit_validity(scan, PARTS, calibration_set, seed=0)
    return Detector("ring", scan, calibration_set, validity=validity, data_fingerprint="0" * 64)


def scan_of(encoder: EncoderConfiguration, seed: int = 0, geometry: ScanGeometry = FINE) -> Scan:
    """Of an untrained encoder: what it cannot tell, the layout must."""
    torch.manual_seed(seed)
    configuration = DetectorConfiguration(geometry=geometry, encoder=encoder)
    scan = Scan(
        configuration, create_encoder(encoder, geometry), create_density(configuration.density), torch.device("cpu")
    )
    scan.density.fit(scan.embed(PARTS[:3]).flatten(0, 2).numpy())
    return scan


def rotation_classifier() -> Scan:
    scan = scan_of(DensePatchConfiguration(width=4))
    configuration = scan.configuration.model_copy(update={"density": RotationClassifierConfiguration()})
    density = RotationClassifier().adopt(projection_head(scan.encoder.feature_dimension, 0, 8, ROTATIONS))
    return Scan(configuration, scan.encoder, density, scan.device)


@pytest.fixture(scope="module", params=["dense_patch", "resnet18_patch", "pretrained_patch", "ensemble", "rotation"])
def detector(request: pytest.FixtureRequest) -> Detector:
    small = DensePatchConfiguration(width=4)
    if request.param == "ensemble":
        return detector_of(*(scan_of(small, seed) for seed in range(3)))
    if request.param == "rotation":
        return detector_of(rotation_classifier())
    if request.param == "resnet18_patch":
        return detector_of(scan_of(ResNet18PatchConfiguration(), geometry=COARSE))
    return detector_of(scan_of(small if request.param == "dense_patch" else PretrainedPatchConfiguration()))


# --- with every encoder -----------------------------------------------------------------------------------------------


def test_blank_frames_a_covered_lens_and_other_products_are_invalid(detector: Detector) -> None:
    random = np.random.default_rng(5)
    cap = np.abs(random.normal(0, 2, (SIZE, SIZE, 3))).astype(np.uint8)
    images = [*blank_frames(SIZE, np.array([90.0, 90.0, 200.0])), cap, *(other_product(seed) for seed in range(3))]
    for image, prediction in zip(images, detector.predict(images), strict=True):
        assert prediction.invalidity is not None
        assert prediction.invalidity > 1, image.mean(axis=(0, 1))
        assert prediction.verdict is Verdict.INVALID
        assert math.isfinite(prediction.image_score)
        assert prediction.regions  # as of all that is not good
    assert detector.validity is not None
    assert detector.validity.blank_share == 1


def test_good_and_defective_parts_are_valid(detector: Detector) -> None:
    for make in (product, stained):
        predictions = detector.predict([make(seed) for seed in range(40, 46)])
        assert all(prediction.verdict is not Verdict.INVALID for prediction in predictions)
        assert all(0 < (prediction.invalidity or 0) <= 1 for prediction in predictions)


def test_no_calibration_image_is_invalid(detector: Detector) -> None:
    assert detector.validity is not None
    values = [detector.validity.invalidity(summary) for summary in detector.calibration_set.summaries]
    assert max(values) <= 1
    assert detector.validity.calibration_images == len(HELD_OUT)
    assert detector.validity.facts()["false_alarm_rate_at_most"] == 1 / 10


def test_it_is_saved_with_the_artifact(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path)
    loaded = Detector.load(tmp_path, "cpu")
    for before, after in zip(
        detector.predict([product(50), other_product(1)]), loaded.predict([product(50), other_product(1)]), strict=True
    ):
        assert after.invalidity == pytest.approx(before.invalidity, abs=1e-5)
    assert loaded.description()["validity"] == detector.description()["validity"] != {}


def test_a_detector_that_is_scanned_anew_keeps_it(detector: Detector) -> None:
    again = detector.rescanned(detector.scan, detector.calibration_set)
    assert again.predict([other_product(1)])[0].verdict is Verdict.INVALID


# --- without ----------------------------------------------------------------------------------------------------------


def test_a_detector_without_it_takes_every_image_for_its_product(tmp_path: Path) -> None:
    scan = scan_of(DensePatchConfiguration(width=4))
    calibration_set = calibrate(scan, FINE, HELD_OUT, [WHOLE] * len(HELD_OUT))
    detector = Detector("ring", scan, calibration_set, data_fingerprint="0" * 64)
    detector.save(tmp_path)
    for one in (detector, Detector.load(tmp_path, "cpu")):
        [prediction] = one.predict([other_product(1)])
        assert prediction.invalidity is None
        assert prediction.verdict is not Verdict.INVALID
        assert one.description()["validity"] is None


def test_an_operation_can_let_more_or_fewer_images_through() -> None:
    point = OperatingPoint(image_threshold=1, pixel_threshold=1, false_reject_rate=0.1, review_band=(0.5, 2))
    for score, otherwise in ((0, Verdict.GOOD), (1, Verdict.REVIEW), (3, Verdict.DEFECTIVE)):
        assert point.verdict(score) is otherwise
        assert point.verdict(score, 1.0) is otherwise
        assert point.verdict(score, 1.01) is Verdict.INVALID
        wider = point.model_copy(update={"invalidity_threshold": 1.5})
        assert wider.verdict(score, 1.5) is otherwise
        assert wider.verdict(score, 1.51) is Verdict.INVALID


def test_a_frame_of_the_colour_of_good_parts_is_among_the_blank_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = []

    def seen(size: int, colour: NDArray[np.float64]) -> NDArray[np.uint8]:
        colours.append(colour)
        return blank_frames(size, colour)

    monkeypatch.setattr("training.fit.blank_frames", seen)
    detector_of(scan_of(DensePatchConfiguration(width=4)))
    np.testing.assert_allclose(colours, [PARTS.mean(axis=(0, 1, 2))])


# --- the thresholds ---------------------------------------------------------------------------------------------------


def summaries(count: int, seed: int, away: float = 0.0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(count, 5 + LAYOUT_DIMENSION)).astype(np.float32)
    values[:, 0] += away
    return values


def test_the_false_alarm_rate_is_kept_in_simulation() -> None:
    """Even where blank frames lie among good images, so that no threshold is moved."""
    alarms = []
    for trial in range(400):
        made = Validity.fit(summaries(12, 3 * trial), summaries(9, 3 * trial + 1), summaries(6, 3 * trial + 2))
        assert made.blank_share < 1
        new = summaries(1, 10**6 + trial)[0]
        alarms.append(made.invalidity(new) > 1)
    expected = 1 / 10
    assert np.mean(alarms) < expected + 4 * math.sqrt(expected * (1 - expected) / len(alarms))
    assert np.mean(alarms) > 0.02  # it does alarm


def test_a_threshold_moves_two_thirds_of_the_way_to_blank_frames() -> None:
    references, calibration, blank = summaries(12, 0), summaries(9, 1), summaries(6, 2, away=1000)
    near = Validity.fit(references, calibration, summaries(6, 2))
    far = Validity.fit(references, calibration, blank)
    to_blank = distances(references, blank).min(axis=0)[0]
    assert far.thresholds[0] == pytest.approx(near.thresholds[0] ** (1 / 3) * to_blank ** (2 / 3), rel=1e-5)
    assert far.blank_share == 1
    assert far.invalidity(blank[0]) > 1


@pytest.mark.parametrize("count", [1, 12])
def test_both_distances_count_in_multiples_of_what_good_images_are_apart(count: int) -> None:
    """Where blank frames lie among the references no threshold is moved; one image alone is apart from none."""
    references, calibration = summaries(count, 0), summaries(9, 1)
    references[:, :5] *= 50
    made = Validity.fit(references, calibration, references[:1])
    parts = [np.split(one.astype(np.float64), [5], axis=1) for one in (references, calibration)]
    apart, furthest = np.ones(2), []
    for number, (known, new) in enumerate(zip(*parts, strict=True)):
        if count > 1:
            rests = [np.delete(known, row, axis=0) for row in range(count)]
            apart[number] = max(np.linalg.norm(rest - x, axis=1).min() for x, rest in zip(known, rests, strict=True))
        furthest.append(max(np.linalg.norm(known - x, axis=1).min() for x in new) / apart[number])
    assert made.thresholds == pytest.approx(apart * max(furthest), rel=1e-5)


def test_images_that_are_all_the_same_still_have_a_threshold() -> None:
    same = np.repeat(summaries(1, 0), 5, axis=0)
    made = Validity.fit(same, same[:2], same)
    assert made.invalidity(same[0]) == 0
    assert made.invalidity(summaries(1, 1)[0]) > 1


# --- what images are compared by --------------------------------------------------------------------------------------


def as_pixels(*images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def test_a_summary_is_the_mean_embedding_and_the_layout() -> None:
    pixels, embeddings = as_pixels(product(0), product(1)), torch.rand(2, 7, 3, 3)
    made = summarise(pixels, embeddings)
    assert made.shape == (2, 7 + LAYOUT_DIMENSION)
    torch.testing.assert_close(made[:, :7], embeddings.mean(dim=(2, 3)))
    torch.testing.assert_close(made[:, 7:], layout(pixels))


@pytest.mark.parametrize("size", [32, 96, 200])
def test_the_layout_tells_the_direction_of_edges_and_where_they_are(size: int) -> None:
    def lines(horizontal: bool, top: bool) -> NDArray[np.uint8]:
        image = np.full((size, size, 3), 128, np.uint8)
        half = image[: size // 2] if top else image[size // 2 :]
        (half if horizontal else half.transpose(1, 0, 2))[size // 8 : size // 4] = 255
        return image

    made = layout(as_pixels(*(lines(horizontal, top) for horizontal in (True, False) for top in (True, False))))
    apart = torch.cdist(made, made) + 9 * torch.eye(4)
    assert apart.min() > 0.5


def test_the_layout_hardly_depends_on_the_light_and_a_flat_frame_has_none() -> None:
    image = product(0).astype(np.float64)
    made = layout(as_pixels(image.astype(np.uint8), (image * 0.6).astype(np.uint8)))
    other = layout(as_pixels(other_product(0)))
    assert float((made[0] - made[1]).norm()) < 0.05 < 0.5 < float((made[0] - other[0]).norm())
    flat = layout(as_pixels(np.full((SIZE, SIZE, 3), 77, np.uint8)))
    assert not flat[0, :-1].any()
    assert torch.isfinite(layout(torch.zeros(1, 3, SIZE, SIZE))).all()


def test_an_edge_runs_in_one_direction_whichever_side_of_it_is_bright() -> None:
    made = layout(as_pixels(other_product(0), 255 - other_product(0)))
    torch.testing.assert_close(made[0, :-1], made[1, :-1], rtol=0, atol=1e-5)


def test_blank_frames_are_blank_and_their_noise_stays_in_range() -> None:
    frames = blank_frames(SIZE, np.array([90.0, 60.0, 200.0])).astype(np.int64)
    assert len(frames) == 2 * 6
    for plain, noisy in zip(frames[::2], frames[1::2], strict=True):
        assert (plain == plain[0, 0]).all()
        assert 1 < np.abs(noisy - plain).max() < 30
    np.testing.assert_array_equal(frames[-2, 0, 0], [90, 60, 200])


def test_distances_are_those_to_the_nearest_reference_part_by_part() -> None:
    references, queries = summaries(4, 0), summaries(3, 1)
    for query, (embedding, of_layout) in zip(queries, distances(references, queries), strict=True):
        assert embedding == pytest.approx(min(np.linalg.norm(query[:5] - one[:5]) for one in references), rel=1e-5)
        assert of_layout == pytest.approx(min(np.linalg.norm(query[5:] - one[5:]) for one in references), rel=1e-5)
