"""``plumbline explain``, with a detector that ``plumbline train`` made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.verbs.explain import MOST_MISSED
from models.detector import Detector
from models.explanation import Method, explain
from models.images import read_image
from models.store import ModelStore
from service.rendering import render_explanation
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, COMPUTE


@pytest.mark.parametrize("method", ["integrated_gradients", "grad_cam"])
def test_explain_draws_what_the_detector_says(
    run: Run, data: Path, models: Path, tmp_path: Path, method: Method
) -> None:
    detector = Detector.load(ModelStore(models).folder(CATEGORY, 1), "cpu")
    images = sorted((data / CATEGORY / "test").glob("*/000.png"))[:2]
    out = tmp_path / "deep" / "pictures"
    outcome = run(
        "explain", CATEGORY, *images, "--models", models, "--out", out, "--method", method, "--json", *COMPUTE
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    result = outcome.result
    assert (result["category"], result["version"], result["method"]) == (CATEGORY, 1, method)
    assert json.loads((out / "explanations.json").read_text()) == result
    for path, entry, line in zip(images, result["images"], outcome.output.splitlines(), strict=False):
        image = read_image(path)
        explanation = explain(detector, image, method)
        assert line.startswith(f"{path}: {explanation.prediction.verdict}, score ")
        assert entry["image"] == str(path)
        assert entry["image_score"] == pytest.approx(explanation.prediction.image_score, rel=1e-5)
        box = explanation.prediction.placement.to_original_box(explanation.window)
        assert entry["window"] == box.model_dump()
        drawn, expected = read_image(Path(entry["picture"])), tmp_path / "expected.png"
        expected.write_bytes(render_explanation(image, explanation))
        assert np.abs(drawn.astype(int) - read_image(expected)).mean() < 0.1
        if method == "integrated_gradients":
            assert entry["attribution_sum"] == pytest.approx(explanation.total, rel=1e-2)
            assert entry["baseline_score"] == pytest.approx(explanation.baseline_score, rel=1e-4)
        else:
            assert not {"attribution_sum", "baseline_score"} & entry.keys()


def test_more_steps_come_closer(run: Run, data: Path, models: Path, tmp_path: Path) -> None:
    image = next((data / CATEGORY / "test" / "good").iterdir())
    errors = []
    for steps in ("1", "256"):
        outcome = run(
            "explain", CATEGORY, image, "--models", models, "--out", tmp_path, "--steps", steps, "--json", *COMPUTE
        )  # fmt: skip
        [entry] = outcome.result["images"]
        difference = entry["image_score"] - entry["baseline_score"]
        errors.append(abs(entry["attribution_sum"] - difference))
        assert ("is missed" in outcome.output) == (errors[-1] > MOST_MISSED * abs(difference))
    assert errors[1] < 0.1 * errors[0]


def test_a_file_that_is_no_image_does_not_lose_the_others(run: Run, data: Path, models: Path, tmp_path: Path) -> None:
    image = next((data / CATEGORY / "test" / "good").iterdir())
    torn = tmp_path / "torn.png"
    torn.write_bytes(image.read_bytes()[:300])
    out = tmp_path / "out"
    outcome = run("explain", CATEGORY, torn, image, "--models", models, "--out", out, "--json", *COMPUTE)
    assert outcome.status == 2
    assert outcome.errors.splitlines()[-1].startswith("plumbline: 1 of 2 files could not be explained; the first, ")
    assert ["error" in entry for entry in outcome.result["images"]] == [True, False]
    assert len(list(out.glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        (("--method", "lime"), ("lime", "grad_cam")),
        (("--steps", "0"), ("0", "positive")),
        (("--method", "grad_cam", "--steps", "9"), ("9", "grad_cam")),
    ],
    ids=["method", "steps", "steps of Grad-CAM"],
)
def test_options_that_make_no_sense_are_refused(
    run: Run, data: Path, models: Path, tmp_path: Path, options: tuple[str, ...], mentions: tuple[str, ...]
) -> None:
    image = next((data / CATEGORY / "test" / "good").iterdir())
    out = tmp_path / "out"
    run("explain", CATEGORY, image, "--models", models, "--out", out, *COMPUTE, *options).assert_refused(2, *mentions)
    assert not out.exists()


def test_what_cannot_be_explained_is_refused(run: Run, data: Path, tmp_path: Path) -> None:
    places = ("--models", tmp_path / "models", "--runs", tmp_path / "runs")
    outcome = run(
        "train", CATEGORY, "--data", data, *places, "--pretext", "rotation", "--density", "rotation_classifier",
        "--width", "2", "--steps", "2", "--batch-size", "4", *COMPUTE,
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    image = next((data / CATEGORY / "test" / "good").iterdir())
    out = tmp_path / "out"
    run("explain", CATEGORY, image, "--models", tmp_path / "models", "--out", out, *COMPUTE).assert_refused(
        2, "rotation_classifier", "kernel_density"
    )
    assert not out.exists()
