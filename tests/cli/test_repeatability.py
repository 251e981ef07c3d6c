"""``plumbline models repeatability`` on shots of the same parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.store import ModelStore
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY
from training.synthetic import render


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four parts, three shots of each, which differ by the camera's noise alone."""
    folder = tmp_path_factory.mktemp("shots")
    random = np.random.default_rng(0)
    for part in range(4):
        image = render(CATEGORY, index=part, image_size=64).image
        (folder / f"part{part}").mkdir()
        for shot in range(3):
            noisy = np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"part{part}" / f"{shot}.png")
    return folder


def test_the_table_and_the_record(run: Run, own_models: Path, shots: Path) -> None:
    arguments = ("models", "repeatability", CATEGORY, "--shots", shots, "--models", own_models, "--device", "cpu")
    outcome = run(*arguments, "--threads", "1", "--json")
    assert outcome.status == 0, outcome.errors
    for text in ("12 shots of 4 parts", "GRR", "%study", "ndc", "kappa"):
        assert text in outcome.output
    result = outcome.result
    assert [one["name"] for one in result["components"]] == ["EV", "GRR", "PV", "TV"]
    assert result["components"][0]["deviation"] > 0
    assert result["verdicts"]["parts"] == 4
    assert ModelStore(own_models).records(CATEGORY, 1)["repeatability"] == result


def test_operators_by_pattern(run: Run, own_models: Path, shots: Path) -> None:
    arguments = ("models", "repeatability", CATEGORY, "--shots", shots, "--models", own_models, "--device", "cpu")
    outcome = run(*arguments, "--parts-pattern", r"(?P<part>part\d)/(?P<operator>\d)", "--json")
    assert [one["name"] for one in outcome.result["components"]] == ["EV", "AV", "INT", "GRR", "PV", "TV"]
    run(*arguments, "--parts-pattern", r"(?P<part>part\d)/[01]").assert_refused(2, "part0/2.png")


def test_shots_or_inspections_with_what_belongs_to_each(run: Run, own_models: Path, shots: Path) -> None:
    arguments = ("models", "repeatability", CATEGORY, "--models", own_models)
    assert run(*arguments).status == 2
    run(*arguments, "--shots", shots, "--operators", "caller").assert_refused(2, "--inspections")
    csv = shots / "inspections.csv"
    run(*arguments, "--inspections", csv, "--parts-pattern", "x").assert_refused(2, "--shots")
