"""Exported detectors, run by the real ONNX Runtime and OpenVINO, see what torch sees."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from models import export as exporting
from models.calibration_set import calibrate
from models.configuration import DetectorConfiguration
from models.densities import (
    Density,
    DensityConfiguration,
    GaussianDensityConfiguration,
    GaussianMixtureConfiguration,
    KernelDensityConfiguration,
    NearestNeighboursConfiguration,
    OneClassSVMConfiguration,
    RotationClassifier,
    RotationClassifierConfiguration,
)
from models.densities.traceable import NotTraceable, TracedKernelSum, traceable
from models.detector import Detector
from models.encoders import (
    DensePatchConfiguration,
    EncoderConfiguration,
    PretrainedPatchConfiguration,
    ResNet18PatchConfiguration,
    create_encoder,
    resnet18_patch,
)
from models.export import ExportError, check, export, in_float32
from models.geometry import Box, ScanGeometry
from models.graph import DetectorGraph
from models.heads import ROTATIONS, projection_head
from models.heatmap import peak_window
from models.inference import FLOAT32, InferencePlan
from models.operation import Operation
from models.region_of_interest import RegionOfInterest
from models.scan import Scan, combine
from models.sessions import MissingExtra, OnnxSession, OpenVinoSession, Session, openvino
from tests.models.detectors import SMALL, learn, make, part, saved

GEOMETRY = SMALL.geometry
SIDE = GEOMETRY.image_size


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``make()`` for OpenVINO; only to be read."""
    folder = tmp_path_factory.mktemp("exported") / "openvino"
    detector = make()
    export(detector, detector.own_operation, folder, "openvino")
    return folder


def images(count: int, side: int = SIDE) -> NDArray[np.uint8]:
    return np.stack([part(50 + number, side, side) for number in range(count)])


def sessions(folder: Path) -> list[Session]:
    return [OnnxSession(folder / "model.onnx"), OpenVinoSession(folder / "model.onnx")]


def assert_agrees(detector: Detector, session: Session, tolerance: float = 1e-4) -> None:
    """By one image and by three, on images that the export did not check."""
    shown = images(3, detector.geometry.image_size)
    look = detector.scan.look(shown)
    # Scores are distances of unit vectors, or larger: float32 rounds them so.
    allowed = tolerance * float(look.score_maps.std()) + 1e-5 * max(1.0, float(np.abs(look.score_maps).max()))
    for count in (1, 3):
        outcome = session.look(shown[:count])
        np.testing.assert_allclose(outcome.score_maps, look.score_maps[:count], rtol=0, atol=allowed)
        np.testing.assert_allclose(outcome.anomaly_maps, look.anomaly_maps[:count], rtol=0, atol=allowed)
        np.testing.assert_allclose(outcome.image_scores, look.score_maps[:count].max(axis=(1, 2)), rtol=0, atol=allowed)
        np.testing.assert_allclose(outcome.summaries, look.summaries[:count], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "density",
    [
        KernelDensityConfiguration(),
        KernelDensityConfiguration(mode="compressed", centres=50, reduction={"dimension": 20}),
        KernelDensityConfiguration(mode="compressed", centres=50, reduction=None),
        KernelDensityConfiguration(mode="exact", reduction={"method": "random_projection", "dimension": 20}),
        KernelDensityConfiguration(mode="neighbours", neighbours=5),
        NearestNeighboursConfiguration(neighbours=2),
        OneClassSVMConfiguration(),
        OneClassSVMConfiguration(kernel="linear"),
        GaussianDensityConfiguration(),
        GaussianMixtureConfiguration(components=3),
    ],
    ids=[
        "kde",
        "compressed",
        "compressed, not reduced",
        "projected",
        "neighbours",
        "nearest",
        "svm",
        "linear",
        "gaussian",
        "mixture",
    ],
)
def test_every_density_agrees(tmp_path: Path, density: DensityConfiguration) -> None:
    detector = make(SMALL.model_copy(update={"density": density}))
    export(detector, detector.own_operation, tmp_path / "out", "onnx")
    for session in sessions(tmp_path / "out"):
        assert_agrees(detector, session)


@pytest.mark.parametrize(
    ("encoder", "geometry"),
    [
        (PretrainedPatchConfiguration(), GEOMETRY),
        (DensePatchConfiguration(width=3, embedding="last"), GEOMETRY),
        (ResNet18PatchConfiguration(), ScanGeometry(image_size=48, patch_size=32, stride=8)),
    ],
    ids=["pretrained", "dense, last stage", "resnet18"],
)
def test_every_encoder_agrees(
    tmp_path: Path, encoder: EncoderConfiguration, geometry: ScanGeometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resnet18_patch, "WINDOWS_PER_BATCH", 7)  # of rows of three: two bands
    detector = make(DetectorConfiguration(encoder=encoder, geometry=geometry, inference=FLOAT32))
    export(detector, detector.own_operation, tmp_path / "out", "onnx")
    for session in sessions(tmp_path / "out"):
        assert_agrees(detector, session)


def test_a_rotation_classifier_agrees(tmp_path: Path) -> None:
    configuration = SMALL.model_copy(update={"density": RotationClassifierConfiguration()})
    torch.manual_seed(0)
    encoder = create_encoder(configuration.encoder, configuration.geometry)
    density = RotationClassifier().adopt(projection_head(encoder.feature_dimension, 1, 8, ROTATIONS))
    detector = calibrated([Scan(configuration, encoder, density, torch.device("cpu"))])
    export(detector, detector.own_operation, tmp_path / "out", "onnx")
    for session in sessions(tmp_path / "out"):
        assert_agrees(detector, session)


def test_an_ensemble_in_a_region_of_interest(tmp_path: Path) -> None:
    """The mean of the members; the peak is taken where windows count, the maps are whole."""
    members = [learn(SMALL)[0], learn(SMALL.model_copy(update={"encoder": DensePatchConfiguration(width=2)}))[0]]
    detector = calibrated(members)
    mask = np.zeros((20, 20), np.bool_)
    mask[12:, :9] = True
    operation = Operation(
        number=3,
        operating_point=detector.operating_point,
        region_of_interest=RegionOfInterest.of_mask(mask),
        author="tests",
        created=datetime.now(UTC),
    )
    report = export(detector, operation, tmp_path / "out", "openvino")
    assert (report["operation"], report["region_of_interest"]) == (3, True)
    shown = images(2)
    look = detector.scan.look(shown)
    outcome = OpenVinoSession(tmp_path / "out" / "model.xml").look(shown)
    np.testing.assert_allclose(outcome.score_maps, look.score_maps, rtol=0, atol=3e-6)
    np.testing.assert_allclose(outcome.summaries, look.summaries, rtol=0, atol=1e-5)
    whole = Box(x=0, y=0, width=SIDE, height=SIDE)
    for score_map, image_score in zip(look.score_maps, outcome.image_scores, strict=True):
        within = score_map[peak_window(score_map, GEOMETRY, whole, operation.region_of_interest)]
        assert image_score == pytest.approx(within, abs=3e-6)
        assert within < score_map.max() - 1e-4


def test_a_model_and_its_sidecar_say_what_they_are(tmp_path: Path) -> None:
    detector = make()
    written = export(detector, detector.own_operation, tmp_path / "a", "onnx", batch=2, check_images=1)
    report = json.loads((tmp_path / "a" / "model.json").read_text())
    assert report == written
    assert report["check"]["images"] == 1
    session = OnnxSession(tmp_path / "a" / "model.onnx")
    point = detector.operating_point
    for facts in (session.facts, report):
        assert float(facts["image_threshold"]) == point.image_threshold
        assert float(facts["pixel_threshold"]) == point.pixel_threshold
        assert (facts["category"], facts["resize"], int(facts["image_size"])) == ("plate", "squash", SIDE)
    assert session.look(images(2)).image_scores.shape == (2,)
    # Of a fixed batch; torch's own names for its parts do not get in.
    model = onnx.load(tmp_path / "a" / "model.onnx")
    [taken] = model.graph.input
    assert [side.dim_value for side in taken.type.tensor_type.shape.dim] == [2, SIDE, SIDE, 3]
    assert [output.name for output in model.graph.output] == [
        "score_map",
        "image_score",
        "anomaly_map",
        "mean_embedding",
    ]


def test_half_precision_becomes_float32_and_is_calibrated_as_that(tmp_path: Path) -> None:
    """Otherwise its scores are those of the version, its thresholds too, and they do not belong together."""
    half = make(
        SMALL.model_copy(
            update={
                "inference": InferencePlan(precision="bfloat16"),
                "density": KernelDensityConfiguration(precision="bfloat16"),
            }
        )
    )
    exact, operation = in_float32(half, half.own_operation)
    assert exact.scan.configuration.inference == FLOAT32
    report = export(half, half.own_operation, tmp_path / "out", "onnx")
    assert report["plan_of_version"] == "bfloat16 torch"
    assert report["image_threshold"] == operation.operating_point.image_threshold
    assert report["image_threshold"] == exact.calibration.operating_point().image_threshold
    assert report["image_threshold"] != half.operating_point.image_threshold
    assert_agrees(exact, OnnxSession(tmp_path / "out" / "model.onnx"))
    assert in_float32(exact, operation) == (exact, operation)


def test_a_version_loaded_by_float32_is_calibrated_for_it_and_not_made_again(tmp_path: Path) -> None:
    half = make(SMALL.model_copy(update={"inference": InferencePlan(precision="bfloat16")}))
    loaded = Detector.load(saved(half, tmp_path / "artifact"), "cpu", FLOAT32)
    exact, operation = in_float32(loaded, half.own_operation)
    assert exact.scan is loaded.scan
    expected, _ = in_float32(half, half.own_operation)
    assert operation.operating_point == expected.operating_point != half.operating_point


def test_a_sampled_sum_is_refused() -> None:
    with pytest.raises(NotTraceable, match=r"kernel_density in the mode sampled cannot .* exact"):
        DetectorGraph(make(SMALL.model_copy(update={"density": KernelDensityConfiguration(mode="sampled")})).scan)


def test_what_does_not_agree_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = make()
    monkeypatch.setattr(exporting, "TOLERANCE", 0.0)
    monkeypatch.setattr(exporting, "ROUNDING", 0.0)
    with pytest.raises(ExportError, match=r"score_map differs by .* 0 is allowed"):
        export(detector, detector.own_operation, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_check_tells_another_detector(exported: Path) -> None:
    detector = make()
    session = OpenVinoSession(exported / "model.xml")
    inputs = detector.calibration_set.inputs
    assert check(detector, detector.own_operation, session, inputs, None)["images"] == len(inputs)
    other = make(SMALL.model_copy(update={"density": KernelDensityConfiguration(gamma=3.0)}))
    with pytest.raises(ExportError, match="image_score differs"):
        check(other, other.own_operation, session, inputs, None)


def test_bfloat16_is_a_hint_and_a_compiled_model_is_kept(exported: Path, tmp_path: Path) -> None:
    detector = make()
    rough = OpenVinoSession(exported / "model.xml", precision="bf16", cache=tmp_path)
    assert rough.facts["category"] == "plate"
    assert any(tmp_path.iterdir())
    again = OpenVinoSession(exported / "model.xml", precision="bf16", cache=tmp_path)
    shown = images(2)
    look, outcome = detector.scan.look(shown), rough.look(shown)
    np.testing.assert_array_equal(again.look(shown).score_maps, outcome.score_maps)
    assert np.abs(outcome.score_maps - look.score_maps).max() < 0.02


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    detector = make()
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="out exists already"):
        export(detector, detector.own_operation, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("form", "library", "extra"),
    [
        ("onnx", "onnxscript", "onnx"),
        ("onnx", "onnxruntime", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("openvino", "onnx", "openvino"),
    ],
)
def test_a_library_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: exporting.Format, library: str, extra: str
) -> None:
    detector = make()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"{library}.*pip install 'plumbline\[{extra}\]'"):
        export(detector, detector.own_operation, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_openvino_does_not_report_its_use() -> None:
    """The package that would send it over the network is there, and stays out."""
    openvino()
    assert sys.modules["openvino_telemetry"] is None


DROPPED_ELSEWHERE = """
import faulthandler, signal, sys
from pathlib import Path
from threading import Thread
from models.sessions import OpenVinoSession

faulthandler.enable()  # as pytest does: its signal stack is what OpenVINO replaces
held = [OpenVinoSession(Path(sys.argv[1]))]
thread = Thread(target=held.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_is_survived_after_a_session_went_in_another_thread(exported: Path) -> None:
    model = exported / "model.xml"
    run = subprocess.run([sys.executable, "-c", DROPPED_ELSEWHERE, model], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "interrupted\n"), run.stderr


def test_a_density_that_cannot_be_expressed_is_named() -> None:
    class Configuration(BaseModel):
        name: str = "strange"

    class Strange(Density):
        def scores(self, queries: Tensor) -> NoReturn:
            raise AssertionError

        def _fit(self, X: NDArray[np.float32]) -> NoReturn:
            raise AssertionError

        def _prepare(self, state: object) -> None:
            pass

    with pytest.raises(NotTraceable, match=r"density strange cannot .* kernel_density"):
        traceable(Strange(Configuration()))


@pytest.mark.parametrize("gamma", [12.0, 60.0], ids=["added up", "in log space"])
def test_a_kernel_sum_over_several_tiles_is_the_sum(gamma: float) -> None:
    random = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(2, 1500, 8, generator=random), dim=2)
    centres = torch.nn.functional.normalize(torch.randn(5000, 8, generator=random), dim=1)
    weights = torch.rand(5000, generator=random)
    module = TracedKernelSum(centres, gamma, weights.log())
    squares = torch.cdist(queries.double(), centres.double()).square()
    expected = (weights.double().log() - gamma * squares).logsumexp(dim=2)
    np.testing.assert_allclose(module(queries).numpy(), expected.numpy(), rtol=0, atol=1e-6 * gamma)


def test_a_graph_takes_as_many_images_as_come() -> None:
    detector = make()
    graph = DetectorGraph(detector.scan).eval()
    for count in (1, 4):
        with torch.inference_mode():
            score_map, image_score, anomaly_map, mean_embedding = graph(torch.from_numpy(images(count)))
        assert score_map.shape == (count, GEOMETRY.grid_size, GEOMETRY.grid_size)
        assert image_score.shape == (count,)
        assert anomaly_map.shape == (count, SIDE, SIDE)
        assert mean_embedding.shape == (count, detector.scan.members[0].encoder.dimension)


def calibrated(members: list[Scan]) -> Detector:
    scan = combine(members)
    whole = Box(x=0, y=0, width=SIDE, height=SIDE)
    return Detector(
        "plate", scan, calibrate(scan, GEOMETRY, images(4), [whole] * 4), data_fingerprint="0123456789abcdef" * 4
    )
