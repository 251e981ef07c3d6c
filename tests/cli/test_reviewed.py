"""``plumbline models extend`` and ``compare`` on what a service recorded and a person reviewed."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from models.densities import NearestNeighboursConfiguration
from models.detector import Detector
from models.store import ModelStore
from service.server import serving
from service.settings import load_settings
from tests.cli.conftest import Run
from tests.cli.support import COMPUTE
from tests.service.records.support import score
from tests.service.support import CATEGORY, make_detector


@pytest.fixture
def plant(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A store, records beside it, and the ids of reviewed parts by what they are."""
    models = tmp_path / "models"
    ModelStore(models).publish(CATEGORY, make_detector(density=NearestNeighboursConfiguration()).save)
    ids = {}
    settings = load_settings(models=models, port=0, device="cpu", threads=1, keep_images="all")
    with serving(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        # The same picture, twice of dust and once of a defect: people see more than the detector.
        for name, seed, hole, review in (
            ("good", 7, False, "good"),
            ("false alarm", 3, True, "good"),
            ("another", 3, True, "good"),
            ("defect", 3, True, "defective"),
            ("unseen", 8, False, None),
        ):
            ids[name] = score(client, seed, defective=hole).json()["id"]
            if review is not None:
                client.post(f"/v1/inspections/{ids[name]}/review", json={"verdict": review}).raise_for_status()
    return models, ids


def test_extend_then_compare(run: Run, plant: tuple[Path, dict[str, str]]) -> None:
    models, ids = plant
    made = run("models", "extend", CATEGORY, ids["false alarm"], "--models", models, *COMPUTE, "--json")
    assert made.status == 0, made.errors
    assert made.result == {"category": CATEGORY, "version": 2, "based_on": 1, "images": 1}
    store = ModelStore(models)
    assert (store.versions(CATEGORY), store.active(CATEGORY)) == ([1, 2], 1)
    compared = run("models", "compare", CATEGORY, "1", "2", "--models", models, *COMPUTE, "--json")
    assert compared.status == 0, compared.errors
    result = compared.result
    assert (result["reviewed"], result["left_out"]) == (3, 1)
    before, after = result["versions"]
    assert [before[name] for name in ("good", "false_rejects", "defective", "escapes")] == [2, 1, 1, 0]
    assert [after[name] for name in ("good", "false_rejects", "defective", "escapes")] == [2, 0, 1, 1]
    assert 0 <= before["auroc"] <= 1
    assert {change["id"] for change in result["changed"]} == {ids["false alarm"], ids["another"], ids["defect"]}
    assert {tuple(change["verdicts"]) for change in result["changed"]} == {("defective", "good")}
    assert "left out of these figures: 1" in compared.output


def test_an_extension_is_at_the_rate_in_force(run: Run, plant: tuple[Path, dict[str, str]]) -> None:
    models, ids = plant
    assert run("models", "operation", CATEGORY, "--false-reject-rate", "0.4", "--models", models).status == 0
    made = run("models", "extend", CATEGORY, ids["false alarm"], "--models", models, *COMPUTE)
    assert made.status == 0, made.errors
    assert Detector.load(ModelStore(models).folder(CATEGORY, 2), "cpu").operating_point.false_reject_rate == 0.4
    assert "by hand" not in made.errors


def test_what_cannot_be_used(run: Run, plant: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    models, ids = plant
    for name in ("defect", "unseen"):
        arguments = ("models", "extend", CATEGORY, ids["good"], ids[name], "--models", models, *COMPUTE)
        run(*arguments).assert_refused(2, ids[name], "last reviewed good")
    elsewhere = ("--models", models, "--records", tmp_path / "none", *COMPUTE)
    run("models", "compare", CATEGORY, "1", "1", *elsewhere).assert_refused(2, "records.sqlite", "--records")
    assert ModelStore(models).versions(CATEGORY) == [1]
