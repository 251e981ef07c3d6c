"""``plumbline train --ensemble``: several members, one version."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from cli.progress import TrainingBar
from models.detector import Detector
from models.images import read_image
from models.store import ModelStore
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, COMPUTE, TINY
from training.run_files import CHECKPOINT_FILE
from training.trainer import Progress


@pytest.fixture
def arguments(data: Path, tmp_path: Path) -> tuple[str, ...]:
    return (
        "train", CATEGORY, "--data", str(data), "--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs"),
        "--json", *TINY,
    )  # fmt: skip


def weights(models: Path, version: int = 1) -> list[bytes]:
    """Of every member, in their order."""
    folder = ModelStore(models).folder(CATEGORY, version)
    return [path.read_bytes() for path in sorted(folder.rglob("encoder.safetensors"))]


def test_members_of_other_seeds_and_pretext_settings(
    run: Run, data: Path, models: Path, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = run(*arguments, "--ensemble", "2", "--member", "head_depth=2", "opacity=[0.5, 1]")
    assert outcome.status == 0, outcome.errors
    assert "member 4 of 4" in outcome.errors
    store = ModelStore(tmp_path / "models")
    detector = Detector.load(store.folder(CATEGORY, 1), "cpu")
    assert len(detector.scan.members) == len(set(weights(tmp_path / "models"))) == 4
    fit = detector.training["fit"]
    assert fit["ensemble"] == 2
    assert (fit["pretexts"][0]["head_depth"], fit["pretexts"][0]["opacity"]) == (2, [0.5, 1])
    assert weights(models)[0] in weights(tmp_path / "models")  # the first is the one that is trained alone
    assert not list((tmp_path / "runs").rglob(CHECKPOINT_FILE))

    image = next((data / CATEGORY / "test" / "good").iterdir())
    scored = run("score", CATEGORY, image, "--models", tmp_path / "models", "--json", *COMPUTE)
    [prediction] = detector.predict([read_image(image)])
    assert scored.result["images"][0]["image_score"] == pytest.approx(prediction.image_score, rel=1e-5)
    shown = run("models", "show", CATEGORY, "--models", tmp_path / "models", "--json")
    assert "member_3/bank.faiss" in shown.result["files"]


def test_a_member_of_another_task(run: Run, arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert run(*arguments, "--light", "0.4", "--member", "name=rotation", "head_depth=1").status == 0
    manifest = json.loads((ModelStore(tmp_path / "models").folder(CATEGORY, 1) / "manifest.json").read_text())
    fit = manifest["configuration"]["training"]["fit"]
    assert [fit["training"]["pretext"]["name"], fit["pretexts"][0]["name"]] == ["cutpaste", "rotation"]


def test_members_of_other_distribution_augmentations(run: Run, arguments: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--pretext", "distribution_augmented", "--set", 'training.pretext.transforms=["rot90"]')
    outcome = run(
        *arguments, *options, "--member", 'transforms=["rot180", "rot270"]', "--member", 'transforms=["hflip"]'
    )
    assert outcome.status == 0, outcome.errors
    detector = Detector.load(ModelStore(tmp_path / "models").folder(CATEGORY, 1), "cpu")
    assert len(detector.scan.members) == len(set(weights(tmp_path / "models"))) == 3
    fit = detector.training["fit"]
    transforms = [pretext["transforms"] for pretext in (fit["training"]["pretext"], *fit["pretexts"])]
    assert transforms == [["rot90"], ["rot180", "rot270"], ["hflip"]]


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        (("--ensemble", "0"), ("0", "positive")),
        (("--member", "head_depth"), ("'head_depth'", "SETTING=VALUE")),
        (("--member", "head_dept=2"), ("head_dept", "no setting")),
        (("--member", "head_depth=-1"), ("head_depth", "-1")),
        (("--member", "name=sorting"), ("sorting", "rotation")),
        (("--light", "0.3", "--member", "light=0.3"), ("pretexts", "twice")),
        (("--crop-patches", "2", "--member", "name=contrastive"), ("pretexts", "contrastive", "crop_patches: 1")),
    ],
    ids=lambda value: " ".join(value[1:]) if value[0].startswith("--") else None,
)
def test_members_that_make_no_sense_are_refused(
    run: Run, arguments: tuple[str, ...], tmp_path: Path, options: tuple[str, ...], mentions: tuple[str, ...]
) -> None:
    run(*arguments, *options).assert_refused(2, *mentions)
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_in_the_second_member_keeps_the_first(
    run: Run, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Progress] = []

    def press(bar: TrainingBar, report: Progress) -> None:
        reports.append(report)
        if len(reports) == 2:
            signal.raise_signal(signal.SIGINT)

    ensemble = (*arguments, "--ensemble", "3")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingBar, "__call__", press)
        run(*ensemble).assert_refused(130, "resume", "member_1")
    run(*ensemble).assert_refused(2, "--resume", "--restart")
    run(*arguments, "--resume").assert_refused(2, "of more members", "--ensemble")  # it would lose the second
    run(*ensemble, "--resume", "--learning-rate", "0.5").assert_refused(2, "other settings")

    outcome = run(*ensemble, "--resume")
    assert outcome.status == 0, outcome.errors
    assert "member 1 of 3, stage 1: cutpaste, from step 6 of 6" in outcome.errors
    assert not list((tmp_path / "runs").rglob(CHECKPOINT_FILE))
    assert run(*ensemble).status == 0
    assert weights(tmp_path / "models", 1) == weights(tmp_path / "models", 2)
