"""The study of precisions: a plan against itself changes nothing, and half precision is scored by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.precision import study
from models.inference import FLOAT32, InferencePlan
from tests.benchmarks.tiny import WHOLE, make_data, make_detector
from training.data import open_dataset
from training.evaluation import evaluate


def test_half_precision_is_compared_with_float32(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    detector = make_detector(data, tmp_path / "run")
    same = study(detector, data, tmp_path / "same", FLOAT32, None, WHOLE)
    assert (same["image_change"], same["pixel_change"], same["largest_difference"]) == (0, 0, 0)
    half = study(detector, data, tmp_path / "half", InferencePlan(precision="bfloat16"), None, WHOLE)
    assert half["image_auroc"] == same["image_auroc"]
    assert 0 < half["largest_difference"] < 0.1
    assert half["spearman"] > 0.99


def test_a_plan_is_scored_as_an_evaluation_does(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    detector = make_detector(data, tmp_path / "run")
    line = study(detector, data, tmp_path / "study", detector.scan.configuration.inference, None, WHOLE)
    expected = evaluate(detector, open_dataset(data, "tile"), tmp_path / "report")
    for kind in ("image", "pixel"):
        assert line[f"{kind}_auroc"] + line[f"{kind}_change"] == pytest.approx(
            100 * expected[f"{kind}_auroc"], abs=0.01
        )
