"""``plumbline models``: what is there, what is active, and whether it is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.detector import Detector
from models.inference import InferencePlan
from models.store import ModelStore
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, COMPUTE

FILES = {"encoder.safetensors", "density.safetensors", "bank.faiss", "calibration.safetensors", "validity.safetensors"}


@pytest.fixture
def two_versions(own_models: Path) -> Path:
    """A store with a second version, which is not active."""
    store = ModelStore(own_models)
    detector = Detector.load(store.folder(CATEGORY, 1), "cpu")
    assert store.publish(CATEGORY, detector.save, activate=False) == 2
    return own_models


def damage(file: Path) -> None:
    """Turn one bit of a published file."""
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_list(run: Run, two_versions: Path) -> None:
    outcome = run("models", "list", "--models", two_versions, "--json")
    assert outcome.status == 0
    assert outcome.result == {"categories": {CATEGORY: {"versions": [1, 2], "active": 1}}}
    line = outcome.output.splitlines()[0]
    assert line.split() == [CATEGORY, "[1]", "2"]


def test_a_category_that_cannot_be_read_is_listed_with_the_reason(run: Run, two_versions: Path) -> None:
    shutil.copytree(two_versions / CATEGORY, two_versions / "damaged")
    (two_versions / "damaged" / "active").write_text("?")
    outcome = run("models", "list", "--models", two_versions, "--json")
    assert outcome.status == 1
    assert outcome.result["error"] == "1 of 2 categories cannot be read: damaged"
    assert outcome.result["categories"][CATEGORY] == {"versions": [1, 2], "active": 1}
    assert "activate a version again" in outcome.result["categories"]["damaged"]["error"]
    lines = outcome.output.splitlines()
    assert sorted(line.split()[0] for line in lines[:-1]) == ["damaged", CATEGORY]


def test_list_of_an_empty_store(run: Run, tmp_path: Path) -> None:
    outcome = run("models", "list", "--models", tmp_path)
    assert outcome.status == 0
    assert f"{tmp_path} holds no trained category" in outcome.output
    assert run("models", "list", "--models", tmp_path, "--json").result == {"categories": {}}


def test_show(run: Run, two_versions: Path) -> None:
    ModelStore(two_versions).record(CATEGORY, 2, "metrics", {"image_auroc": 0.5})
    active = run("models", "show", CATEGORY, "--models", two_versions, "--json").result
    assert (active["category"], active["version"], active["active"], active["records"]) == (CATEGORY, 1, True, {})
    assert active["configuration"]["detector"]["encoder"]["width"] == 2
    assert set(active["files"]) >= FILES
    other = run("models", "show", CATEGORY, "2", "--models", two_versions, "--json").result
    assert (other["version"], other["active"]) == (2, False)
    assert other["records"] == {"metrics": {"image_auroc": 0.5}}
    for_people = run("models", "show", CATEGORY, "2", "--models", two_versions)
    assert json.loads(for_people.output) == other


def test_activate_and_back(run: Run, two_versions: Path) -> None:
    for version in (2, 1):
        outcome = run("models", "activate", CATEGORY, str(version), "--models", two_versions, "--json")
        assert outcome.status == 0
        assert outcome.result == {"category": CATEGORY, "active": version}
        assert f"version {version} is active" in outcome.output
        assert ModelStore(two_versions).active(CATEGORY) == version


def test_rollback_and_history(run: Run, two_versions: Path) -> None:
    where = ("--models", two_versions, "--json")
    run("models", "rollback", CATEGORY, *where).assert_refused(2, "none to go back to")
    run("models", "activate", CATEGORY, "2", *where)
    back = run("models", "rollback", CATEGORY, *where)
    assert back.result == {"category": CATEGORY, "active": 1}
    assert "version 1 is active again" in back.output
    assert ModelStore(two_versions).active(CATEGORY) == 1
    history = run("models", "history", CATEGORY, *where)
    entries = history.result["activations"]
    assert [(entry["version"], entry["rollback"]) for entry in entries] == [(1, False), (2, False), (1, True)]
    assert "rolled back to version 1" in history.output.splitlines()[2]


def test_shadow(run: Run, two_versions: Path) -> None:
    where = ("--models", two_versions, "--json")
    run("models", "shadow", CATEGORY, "1", *where).assert_refused(2, "is the active one")
    assert run("models", "shadow", CATEGORY, "2", *where).result == {"category": CATEGORY, "shadow": 2}
    assert ModelStore(two_versions).shadow(CATEGORY) == 2
    assert "no version is the shadow" in run("models", "shadow", CATEGORY, *where).output
    assert ModelStore(two_versions).shadow(CATEGORY) is None


def test_verify(run: Run, two_versions: Path) -> None:
    for arguments, version in (((), 1), (("2",), 2)):
        outcome = run("models", "verify", CATEGORY, *arguments, "--models", two_versions, "--json")
        assert outcome.status == 0
        assert outcome.result["version"] == version
        assert set(outcome.result["files"]) == FILES
        assert "whole" in outcome.output


@pytest.mark.parametrize("name", sorted({*FILES, "manifest.json"}))
def test_a_damaged_version_fails_to_verify_and_to_score(run: Run, data: Path, two_versions: Path, name: str) -> None:
    damage(ModelStore(two_versions).folder(CATEGORY, 1) / name)
    image = next((data / CATEGORY / "test" / "good").iterdir())
    run("models", "verify", CATEGORY, "--models", two_versions, "--json").assert_refused(1, name)
    run("score", CATEGORY, image, "--models", two_versions, "--json", *COMPUTE).assert_refused(1, name)
    assert run("models", "verify", CATEGORY, "2", "--models", two_versions).status == 0


def test_a_version_with_a_file_missing_fails_to_verify(run: Run, own_models: Path) -> None:
    (ModelStore(own_models).folder(CATEGORY, 1) / "bank.faiss").unlink()
    run("models", "verify", CATEGORY, "--models", own_models).assert_refused(1, "bank.faiss")


def test_without_an_active_version_one_must_be_named(run: Run, data: Path, own_models: Path) -> None:
    (own_models / CATEGORY / "active").unlink()
    image = next((data / CATEGORY / "test" / "good").iterdir())
    assert run("models", "list", "--models", own_models, "--json").result["categories"][CATEGORY]["active"] is None
    for action in ("show", "verify"):
        run("models", action, CATEGORY, "--models", own_models).assert_refused(2, "no active version")
        assert run("models", action, CATEGORY, "1", "--models", own_models).status == 0
    run("score", CATEGORY, image, "--models", own_models).assert_refused(2, "no active version", "[1]")
    assert run("score", CATEGORY, image, "--models", own_models, "--version-number", "1", *COMPUTE).status == 0


# --- operation --------------------------------------------------------------------------------------------------------


def test_operation_shows_the_artifacts_own(run: Run, models: Path) -> None:
    outcome = run("models", "operation", CATEGORY, "--models", models, "--json")
    assert outcome.status == 0, outcome.errors
    assert outcome.result["version"] == 1
    assert outcome.result["operation"]["number"] == 0
    assert outcome.result["region_of_interest_share"] is None


def test_operation_records_what_scores_are_judged_by_from_then_on(run: Run, own_models: Path, data: Path) -> None:
    image = next((data / CATEGORY / "test" / "good").iterdir())
    places = (CATEGORY, "--models", own_models, "--json")
    before = run("score", CATEGORY, image, "--models", own_models, "--json", *COMPUTE).result
    assert before["operation"] == 0
    changed = run("models", "operation", *places, "--false-reject-rate", "0.9", "--note", "a louder camera").result
    assert (changed["operation"]["number"], changed["operation"]["note"]) == (1, "a louder camera")
    assert changed["operation"]["operating_point"]["false_reject_rate"] == 0.9
    after = run("score", CATEGORY, image, "--models", own_models, "--json", *COMPUTE).result
    assert after["operation"] == 1
    assert after["threshold"] == changed["operation"]["operating_point"]["image_threshold"] < before["threshold"]
    back = run("models", "operation", *places, "--restore", "0").result
    assert (back["operation"]["number"], back["operation"]["restores"]) == (2, 0)
    assert back["operation"]["operating_point"]["image_threshold"] == before["threshold"]


def test_operation_of_a_version_that_does_not_run_here(run: Run, own_models: Path) -> None:
    store = ModelStore(own_models)
    detector = Detector.load(store.folder(CATEGORY, 1), "cpu")
    gpu = InferencePlan(precision="float32", engine="cuda_graph")
    detector.scan.configuration = detector.scan.configuration.model_copy(update={"inference": gpu})
    store.publish(CATEGORY, detector.save)
    outcome = run("models", "operation", CATEGORY, "--models", own_models, "--false-reject-rate", "0.9", "--json")
    assert outcome.status == 0, outcome.errors
    assert (outcome.result["version"], outcome.result["operation"]["number"]) == (2, 1)


def test_operation_takes_a_region_of_interest_and_lays_it_down_again(
    run: Run, own_models: Path, tmp_path: Path
) -> None:
    mask = np.zeros((30, 30, 3), np.uint8)
    mask[:, :15] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    places = (CATEGORY, "--models", own_models, "--json")
    outcome = run("models", "operation", *places, "--region-of-interest", tmp_path / "left.png")
    assert outcome.status == 0, outcome.errors
    assert outcome.result["region_of_interest_share"] == 0.5
    assert "50.0% of the image" in outcome.output
    outcome = run("models", "operation", *places, "--no-region-of-interest")
    assert (outcome.result["operation"]["number"], outcome.result["region_of_interest_share"]) == (2, None)


def test_operation_refuses_what_no_version_can_run_with(run: Run, own_models: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    for arguments, mention in (
        (("--false-reject-rate", "0.0001"), "calibration images: accepted are"),
        (("--region-of-interest", tmp_path / "black.png"), "all of the mask is black"),
        (("--region-of-interest", tmp_path / "none.png"), f"plumbline: {tmp_path / 'none.png'}: cannot be read"),
        (("--restore", "7"), "no operation 7"),
        (("--restore", "0", "--no-region-of-interest"), "give it alone"),
    ):
        outcome = run("models", "operation", CATEGORY, "--models", own_models, *arguments)
        assert outcome.status == 2, outcome.output
        assert mention in outcome.errors
    assert run("models", "operation", CATEGORY, "--models", own_models, "--json").result["operation"]["number"] == 0
