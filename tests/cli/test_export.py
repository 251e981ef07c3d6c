"""``plumbline export``, with a detector that ``plumbline train`` made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from models.artifact import read_manifest
from models.calibration_set import calibrate
from models.detector import Detector
from models.export import in_float32
from models.images import read_image
from models.inference import FLOAT32, InferencePlan
from models.operation import Operations, revised
from models.scan import by_plan
from models.sessions import OnnxSession, OpenVinoSession
from models.store import ModelStore
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY

THREADS = ("--threads", "1")


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_export_writes_a_model_that_scores_as_the_version_does(
    run: Run, data: Path, own_models: Path, tmp_path: Path, form: str
) -> None:
    store = ModelStore(own_models)
    folder = store.folder(CATEGORY, 1)
    detector = Detector.load(folder, "cpu")
    recorded = Operations(store).record(detector, lambda before: revised(detector, before, author="tests", rate=0.5))
    detector, operation = in_float32(detector, recorded)
    out = tmp_path / "deep" / "exported"
    outcome = run(
        "export", CATEGORY, "--format", form, "--out", out, "--models", own_models, "--check-images", "2", "--json",
        *THREADS,
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    result = outcome.result
    assert (result["category"], result["version"], result["operation"], result["format"]) == (CATEGORY, 1, 1, form)
    assert result["image_threshold"] == pytest.approx(operation.operating_point.image_threshold, abs=1e-5)
    assert result["image_threshold"] == pytest.approx(recorded.operating_point.image_threshold, abs=0.02)
    assert result["artifact_digest"] == read_manifest(folder).digest
    assert json.loads((out / "model.json").read_text()) == {k: v for k, v in result.items() if k != "folder"}
    assert result["check"]["images"] == 2
    assert "an image: " in outcome.output
    session = OnnxSession(out / "model.onnx") if form == "onnx" else OpenVinoSession(out / "model.xml")
    assert float(session.facts["image_threshold"]) == result["image_threshold"]
    image = read_image(next((data / CATEGORY / "test" / "good").iterdir()))
    placed, _ = detector.place(image)
    [prediction] = detector.predict([image], operation)
    assert session.look(placed[None]).image_scores[0] == pytest.approx(prediction.image_score, abs=1e-5)
    np.testing.assert_allclose(session.look(placed[None]).anomaly_maps[0], prediction.anomaly_map, rtol=0, atol=1e-5)
    assert [path.name for path in out.parent.iterdir()] == ["exported"]


def test_a_version_that_needs_a_gpu_is_exported_without_one(run: Run, own_models: Path, tmp_path: Path) -> None:
    store = ModelStore(own_models)
    detector = Detector.load(store.folder(CATEGORY, 1), "cpu", FLOAT32)
    held = detector.calibration_set
    by_half = by_plan(detector.scan, InferencePlan(precision="bfloat16"))
    half = detector.rescanned(by_half, calibrate(by_half, detector.geometry, held.inputs, held.contents))
    gpu = InferencePlan(precision="bfloat16", engine="cuda_graph")
    half.scan.configuration = half.scan.configuration.model_copy(update={"inference": gpu})
    store.publish(CATEGORY, half.save)
    out = tmp_path / "exported"
    outcome = run("export", CATEGORY, "--format", "onnx", "--out", out, "--models", own_models, "--json", *THREADS)
    assert outcome.status == 0, outcome.errors
    assert (outcome.result["version"], outcome.result["plan_of_version"]) == (2, "bfloat16 cuda_graph")
    # Calibrated as the model computes, not as the version does.
    exact = calibrate(detector.scan, detector.geometry, held.inputs, held.contents).scores
    threshold = exact.operating_point(half.operating_point.false_reject_rate).image_threshold
    assert outcome.result["image_threshold"] == threshold != half.operating_point.image_threshold


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        (("--format", "tflite"), ("tflite", "openvino")),
        (("--format", "onnx", "--batch", "some"), ("some", "dynamic")),
        (("--format", "onnx", "--batch", "0"), ("0", "positive")),
        (("--format", "onnx", "--version-number", "7"), ("7", "version")),
    ],
    ids=["format", "batch", "no image", "version"],
)
def test_options_that_make_no_sense_are_refused(
    run: Run, models: Path, tmp_path: Path, options: tuple[str, ...], mentions: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    outcome = run("export", CATEGORY, "--out", out, "--models", models, *THREADS, *options)
    outcome.assert_refused(2, *mentions)
    assert not out.exists()


def test_a_folder_that_is_there_is_refused(run: Run, models: Path, tmp_path: Path) -> None:
    outcome = run("export", CATEGORY, "--format", "onnx", "--out", tmp_path, "--models", models, "--json", *THREADS)
    outcome.assert_refused(2, str(tmp_path), "exists already")


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    out = tmp_path / "out"
    outcome = run("export", CATEGORY, "--format", "openvino", "--out", out, "--models", models, "--json", *THREADS)
    outcome.assert_refused(2, "openvino is not installed", "pip install 'plumbline[openvino]'")
    assert list(tmp_path.iterdir()) == []
