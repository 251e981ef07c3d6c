from __future__ import annotations

import json
import math
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from models.artifact import ArtifactError, write_manifest
from models.configuration import DetectorConfiguration
from models.densities import (
    DensityConfiguration,
    GaussianDensityConfiguration,
    GaussianMixtureConfiguration,
    KernelDensity,
    KernelDensityConfiguration,
    NearestNeighboursConfiguration,
    OneClassSVMConfiguration,
)
from models.densities.reduction import ReductionConfiguration
from models.detector import IMAGES_PER_SCAN, REGIONS_KEPT, Detector
from models.device import DeviceError
from models.encoders import (
    DensePatchConfiguration,
    ResNet18PatchConfiguration,
    create_encoder,
    encode_per_window,
)
from models.geometry import Box, ScanGeometry
from models.heatmap import GaussianUpsampler
from models.images import ResizeMode, place_image
from models.prediction import Prediction, Verdict
from models.region_of_interest import RegionOfInterest
from models.scan import Look, Scan, _look_at_once
from tests.models.detectors import FINGERPRINT, SMALL, detector_of, learn, make, part, point, saved
from tests.threads import torch_threads

CONFIGURATIONS = {
    "dense_patch": SMALL,
    "letterbox": SMALL.model_copy(update={"resize": "letterbox", "sigma": 5.0}),
    "neighbours": SMALL.model_copy(update={"density": KernelDensityConfiguration(mode="neighbours", neighbours=7)}),
    "resnet18_patch": SMALL.model_copy(
        update={"geometry": ScanGeometry(image_size=64, stride=32), "encoder": ResNet18PatchConfiguration()}
    ),
}
configurations = pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
SHAPES = [(97, 97), (60, 130), (240, 80), (1, 1), (3, 200)]


def counted_windows(geometry: ScanGeometry, prediction: Prediction) -> NDArray[np.bool_]:
    counted = np.zeros_like(prediction.score_map, dtype=np.bool_)
    counted[np.ix_(*geometry.windows_of(prediction.placement.content))] = True
    return counted


def assert_same(first: list[Prediction], second: list[Prediction], tolerance: float) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.score_map, other.score_map, rtol=0, atol=tolerance)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, rtol=0, atol=tolerance)
        assert one.image_score == pytest.approx(other.image_score, rel=0, abs=tolerance)
        assert one.placement == other.placement
        if tolerance == 0:
            assert (one.p_value, one.verdict, one.regions) == (other.p_value, other.verdict, other.regions)


# --- predictions ----------------------------------------------------------------------------------------------------


@configurations
def test_a_prediction_holds_together(configuration: DetectorConfiguration) -> None:
    detector = make(configuration)
    geometry, images = configuration.geometry, [part(90 + k, *shape) for k, shape in enumerate(SHAPES)]
    predictions = detector.predict(images)
    assert len(predictions) == len(images)
    for image, prediction in zip(images, predictions, strict=True):
        assert prediction.score_map.shape == (geometry.grid_size, geometry.grid_size)
        assert prediction.anomaly_map.shape == (geometry.image_size, geometry.image_size)
        assert prediction.score_map.dtype == prediction.anomaly_map.dtype == np.float32
        counted = counted_windows(geometry, prediction)
        assert counted.all() or configuration.resize == "letterbox"
        assert prediction.image_score == prediction.score_map[counted].max()
        assert prediction.p_value == detector.calibration.p_value(prediction.image_score)
        assert prediction.verdict is detector.operating_point.verdict(prediction.image_score)
        assert (prediction.placement.original_height, prediction.placement.original_width) == image.shape[:2]
        assert prediction.regions or prediction.verdict is Verdict.GOOD
        for region in prediction.regions:
            assert region.box.y + region.box.height <= image.shape[0]
            assert region.box.x + region.box.width <= image.shape[1]


@configurations
def test_scores_are_the_slow_definition(configuration: DetectorConfiguration) -> None:
    """Each window cut out and embedded by itself, and a float64 sum over its distances to the bank."""
    detector = make(configuration)
    density, geometry = detector.scan.members[0].density, configuration.geometry
    assert isinstance(density, KernelDensity)
    image = part(50, 70, 110)
    placed, _ = place_image(image, geometry.image_size, configuration.resize)
    pixels = torch.from_numpy(placed.transpose(2, 0, 1).astype(np.float32) / 255)[None]
    with torch.inference_mode():
        embeddings = encode_per_window(detector.scan.members[0].encoder, pixels)[0].flatten(1).T.double().numpy()
    bank = density.bank.vectors.numpy().astype(np.float64)
    kept = density.configuration.neighbours if density.configuration.mode == "neighbours" else density.samples
    scores = []
    for embedding in embeddings:
        nearest = np.sort(np.square(bank - embedding).sum(axis=1))[:kept]
        scores.append((math.log(density.samples) - logsumexp(-density.gamma * nearest)) / density.gamma)
    expected = np.array(scores, np.float32).reshape(geometry.grid_size, geometry.grid_size)
    prediction = detector.predict([image])[0]
    np.testing.assert_allclose(prediction.score_map, expected, rtol=0, atol=3e-5)
    heatmap = GaussianUpsampler(geometry, configuration.sigma)(torch.from_numpy(expected)[None])[0].numpy()
    np.testing.assert_allclose(prediction.anomaly_map, heatmap, rtol=0, atol=3e-5)


@pytest.mark.parametrize(("threads", "tolerance"), [(1, 0), (2, 1e-6)], ids=["one_by_one", "side_by_side"])
@configurations
def test_a_batch_of_images_of_many_sizes_is_each_by_itself(
    configuration: DetectorConfiguration, threads: int, tolerance: float
) -> None:
    detector = make(configuration)
    images = [part(90 + k, *shape) for k, shape in enumerate(SHAPES)]
    with torch_threads(threads):
        alone = [detector.predict([image])[0] for image in images]
        assert_same(detector.predict(images), alone, tolerance)


@configurations
def test_images_looked_at_together_as_on_a_gpu_are_each_by_itself(configuration: DetectorConfiguration) -> None:
    detector = make(configuration)
    inputs = np.stack([detector.place(part(90 + k, *shape))[0] for k, shape in enumerate(SHAPES)])
    for together, alone in zip(_look_at_once(detector.scan.members, inputs), detector.scan.look(inputs), strict=True):
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [IMAGES_PER_SCAN, IMAGES_PER_SCAN + 1, 2 * IMAGES_PER_SCAN + 3])
def test_many_images_are_scanned_a_few_at_a_time(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = make()
    images = [part(90 + k, 60, 40 + k) for k in range(count)]
    with torch_threads(1):
        alone = [detector.predict([image])[0] for image in images]
    batches: list[int] = []
    look = Scan.look

    def counting(scan: Scan, inputs: NDArray[np.uint8]) -> Look:
        batches.append(len(inputs))
        return look(scan, inputs)

    monkeypatch.setattr(Scan, "look", counting)
    with torch_threads(1):
        assert_same(detector.predict(images), alone, 0)
    assert sum(batches) == count
    assert max(batches) <= IMAGES_PER_SCAN


def test_an_image_goes_through_the_network_once() -> None:
    detector, passes = make(), []
    hook = detector.scan.members[0].network.get_submodule("stem").register_forward_hook(lambda *_: passes.append(1))
    detector.predict([part(50, 60, 60)])
    hook.remove()
    assert len(passes) == 1  # its scores are made of the embeddings that the summary is made of


def test_a_scan_computes_in_float32_and_not_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    learn(SMALL)
    assert not torch.backends.cudnn.allow_tf32


def test_of_many_regions_of_interest_a_few_calibrations_are_kept() -> None:
    detector = detector_of(learn(SMALL))
    regions = [RegionOfInterest.of_mask(np.arange(16).reshape(4, 4) <= number) for number in range(15)]
    made = [detector.calibration_for(region) for region in regions]
    assert len(detector._calibrations) <= REGIONS_KEPT + 1
    assert detector.calibration_for(None) is detector.calibration
    assert detector.calibration_for(regions[-1]) is made[-1]


def test_no_images_have_no_predictions() -> None:
    assert make().predict([]) == []


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("upright", [False, True])
def test_a_defect_is_found_where_it_is_and_changes_nothing_elsewhere(resize: ResizeMode, upright: bool) -> None:
    geometry = ScanGeometry(image_size=160)
    detector = make(SMALL.model_copy(update={"geometry": geometry, "resize": resize}))
    height, width = (300, 150) if upright else (150, 300)
    defect = Box(x=20, y=230, width=40, height=50) if upright else Box(x=230, y=20, width=50, height=40)
    images = [part(70, height, width), part(70, height, width, defect)]
    good, defective = detector.predict(images)
    assert defective.verdict is Verdict.DEFECTIVE
    assert defective.p_value == detector.calibration.smallest_rate
    reach = geometry.patch_size / 2 * 300 / geometry.image_size  # half a window, in the original's pixels
    peak = defective.regions[0].peak
    assert abs(peak.x + 0.5 - (defect.x + defect.width / 2)) < defect.width / 2 + reach
    assert abs(peak.y + 0.5 - (defect.y + defect.height / 2)) < defect.height / 2 + reach

    placed_good, placed_defective = (place_image(image, geometry.image_size, resize)[0] for image in images)
    differing = (placed_good != placed_defective).any(axis=2)
    changed = np.zeros_like(good.score_map, dtype=np.bool_)
    for i in range(geometry.grid_size):
        for j in range(geometry.grid_size):
            box = geometry.window(i, j)
            changed[i, j] = differing[box.y : box.y + box.height, box.x : box.x + box.width].any()
    difference = np.abs(defective.score_map - good.score_map)
    assert difference[~changed].max() <= 1e-6
    assert np.mean(difference[changed] > 1e-6) > 0.5


def test_what_only_the_padding_of_a_letterbox_shows_makes_no_verdict() -> None:
    """A dark edge beside its own reflection is a bar that no part has."""
    geometry = ScanGeometry(image_size=128)
    detector = make(SMALL.model_copy(update={"geometry": geometry, "resize": "letterbox"}))
    image = part(70, 60, 128)
    image[-3:] = 0
    [prediction] = detector.predict([image])
    counted = counted_windows(geometry, prediction)
    assert prediction.score_map[~counted].max() > prediction.image_score  # so that the test can fail
    detector.operating_point = point(prediction.image_score, 9)
    assert detector.predict([image])[0].verdict is Verdict.GOOD
    detector.operating_point = point(float(np.nextafter(np.float32(prediction.image_score), np.float32(-9))), 9)
    [defective] = detector.predict([image])
    assert defective.verdict is Verdict.DEFECTIVE
    boxes = [
        prediction.placement.to_original_box(geometry.window(int(i), int(j)))
        for i, j in zip(*np.nonzero(prediction.score_map == prediction.image_score), strict=True)
    ]
    assert defective.regions[0].box in boxes  # the region is the window that the score is of


@configurations
@pytest.mark.parametrize("verdict", [Verdict.DEFECTIVE, Verdict.REVIEW])
def test_what_is_not_good_always_has_a_region(configuration: DetectorConfiguration, verdict: Verdict) -> None:
    """The peak window, where the anomaly map stays below the pixel threshold."""
    band = {"review_band": (-10.0, 10.0)} if verdict is Verdict.REVIEW else {}
    detector = make(configuration, point(-9, 9, **band))
    images = [part(90 + k, *shape) for k, shape in enumerate(SHAPES)]
    for image, prediction in zip(images, detector.predict(images), strict=True):
        assert prediction.verdict is verdict
        (region,) = prediction.regions
        assert region.box.y + region.box.height <= image.shape[0]
        assert region.box.x + region.box.width <= image.shape[1]
        assert region.peak_score <= prediction.anomaly_map.max() < 9


def test_a_good_part_below_the_pixel_threshold_has_no_region() -> None:
    prediction = make(SMALL, point(9, 9)).predict([part(50, 60, 60)])[0]
    assert (prediction.verdict, prediction.regions) == (Verdict.GOOD, ())


@pytest.mark.parametrize(
    "density",
    [
        KernelDensityConfiguration(mode="exact"),
        KernelDensityConfiguration(mode="compressed", reduction=ReductionConfiguration(dimension=8)),
        KernelDensityConfiguration(mode="sampled", samples=256),
        KernelDensityConfiguration(mode="neighbours"),
        NearestNeighboursConfiguration(),
        OneClassSVMConfiguration(),
        GaussianDensityConfiguration(),
        GaussianMixtureConfiguration(),
    ],
    ids=lambda density: getattr(density, "mode", density.name),
)
def test_an_encoder_that_gives_no_numbers_passes_no_part(density: DensityConfiguration) -> None:
    detector = detector_of(learn(SMALL.model_copy(update={"density": density})))
    next(detector.scan.members[0].network.parameters()).data.fill_(math.nan)
    with pytest.raises(ValueError, match="finite"):
        detector.predict([part(50, 60, 60)])


def test_the_default_operating_point_is_the_calibrations() -> None:
    detector = make()
    assert detector.operating_point == detector.calibration.operating_point()
    assert make(SMALL, point(1, 2)).operating_point == point(1, 2)


# --- the artifact ---------------------------------------------------------------------------------------------------


@configurations
def test_a_saved_detector_predicts_the_same_to_the_last_bit(
    configuration: DetectorConfiguration, tmp_path: Path
) -> None:
    detector = make(configuration, point(-0.5, -0.4, review_band=(-0.6, 0.1)))
    loaded = Detector.load(saved(detector, tmp_path / "artifact"), "cpu")
    images = [part(90 + k, *shape) for k, shape in enumerate(SHAPES)]
    assert_same(loaded.predict(images), detector.predict(images), 0)
    assert loaded.scan.configuration == configuration
    assert loaded.operating_point == detector.operating_point
    np.testing.assert_array_equal(loaded.calibration.image_scores, detector.calibration.image_scores)
    np.testing.assert_array_equal(loaded.calibration.map_maxima, detector.calibration.map_maxima)
    np.testing.assert_array_equal(loaded.calibration_set.score_maps, detector.calibration_set.score_maps)
    np.testing.assert_array_equal(loaded.calibration_set.inputs, detector.calibration_set.inputs)
    assert loaded.calibration_set.contents == detector.calibration_set.contents
    again = Detector.load(saved(loaded, tmp_path / "again"), "cpu")
    assert_same(again.predict(images[:1]), detector.predict(images[:1]), 0)


def test_saving_changes_nothing_of_the_detector(tmp_path: Path) -> None:
    detector, images = make(), [part(50, 60, 60)]
    before = detector.predict(images)
    saved(detector, tmp_path / "artifact")
    assert_same(detector.predict(images), before, 0)


def test_an_artifact_tells_what_it_is(tmp_path: Path) -> None:
    detector = make()
    assert detector.version is None
    loaded = Detector.load(saved(detector, tmp_path / "artifact", version=3), "cpu")
    assert (loaded.category, loaded.version, loaded.data_fingerprint) == ("plate", 3, FINGERPRINT)
    assert loaded.training == {"steps": 0, "note": "untrained"}
    before, after = detector.description(), loaded.description()
    assert json.loads(json.dumps(after, allow_nan=False))["version"] == 3
    assert after["created"] is not None
    differing = {name for name in after if after[name] != before[name]}
    assert differing == {"version", "created"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = saved(make(), tmp_path_factory.mktemp("artifact") / "folder")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FILES = ["manifest.json", "encoder.safetensors", "bank.faiss", "density.safetensors", "calibration.safetensors"]


def written(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_an_artifact_is_these_files(artifact: dict[str, bytes], tmp_path: Path) -> None:
    assert sorted(artifact) == sorted(FILES)
    Detector.load(written(artifact, tmp_path), "cpu")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.1, 0.35, 0.5, 0.8, 1.0])
def test_a_flipped_bit_is_found(artifact: dict[str, bytes], tmp_path: Path, name: str, place: float) -> None:
    content = bytearray(artifact[name])
    content[round(place * (len(content) - 1))] ^= 1
    with pytest.raises(ArtifactError, match=name):
        Detector.load(written(artifact | {name: bytes(content)}, tmp_path), "cpu")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(artifact: dict[str, bytes], tmp_path: Path, name: str) -> None:
    written(artifact, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        Detector.load(tmp_path, "cpu")


def test_a_configuration_of_another_build_is_refused(tmp_path: Path) -> None:
    write_manifest(
        tmp_path,
        category="plate",
        version=1,
        configuration={"detector": {"encoder": {"name": "dense_patch_2"}}},
        geometry=SMALL.geometry,
        data_fingerprint=FINGERPRINT,
    )
    with pytest.raises(ArtifactError, match=r"(?s)not what this build reads.*dense_patch_2"):
        Detector.load(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("Flat", faiss.METRIC_INNER_PRODUCT), ("HNSW8,Flat", faiss.METRIC_L2), ("SQ8", faiss.METRIC_L2)],
    ids=["inner product", "graph", "quantized"],
)
def test_a_bank_of_another_kind_of_index_is_refused(tmp_path: Path, kind: str, metric: int) -> None:
    detector = detector_of(learn(SMALL))
    density = detector.scan.members[0].density
    assert isinstance(density, KernelDensity)
    density.bank._index = faiss.index_factory(density.dimension, kind, metric)
    with pytest.raises(ArtifactError, match=r"(?s)not what this build reads.*no flat L2 index"):
        Detector.load(saved(detector, tmp_path / "artifact"), "cpu")


def test_a_way_to_sum_of_another_build_is_refused(tmp_path: Path) -> None:
    detector = detector_of(learn(SMALL))
    detector.scan.members[0].density.state["mode"] = torch.tensor(99)
    with pytest.raises(ArtifactError, match="not what this build reads"):
        Detector.load(saved(detector, tmp_path / "artifact"), "cpu")


def test_weights_of_another_build_are_refused(tmp_path: Path) -> None:
    detector = detector_of(learn(SMALL))
    detector.scan.members[0].encoder = create_encoder(DensePatchConfiguration(width=5), SMALL.geometry)
    with pytest.raises(ArtifactError, match=r"(?s)not what this build reads.*stem"):
        Detector.load(saved(detector, tmp_path / "artifact"), "cpu")


@pytest.mark.parametrize(
    "device",
    [
        "tpu",
        "cuda:first",
        pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")),
    ],
)
def test_a_device_that_is_not_there_is_refused(artifact: dict[str, bytes], tmp_path: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=device):
        Detector.load(written(artifact, tmp_path), device)


@pytest.mark.cuda
@configurations
def test_cuda_predicts_as_the_cpu_does(
    configuration: DetectorConfiguration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images = [part(90 + k, *shape) for k, shape in enumerate(SHAPES)]
    detector = make(configuration)
    folder = saved(detector, tmp_path / "first")
    on_cuda = Detector.load(folder, "cuda")
    assert on_cuda.scan.device.type == "cuda"
    assert_same(on_cuda.predict(images), detector.predict(images), 1e-4)
    back = Detector.load(saved(on_cuda, tmp_path / "second"), "cpu")
    assert_same(back.predict(images), detector.predict(images), 0)
