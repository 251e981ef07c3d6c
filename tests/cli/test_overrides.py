"""``--set``: fields of a configuration that have no option of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.errors import UsageError
from cli.overrides import Assignment, apply
from models.store import ModelStore
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, TINY
from training.fit import FitConfiguration


def applied(path: str, value: Any, values: dict[str, Any] | None = None) -> dict[str, Any]:
    values = {} if values is None else values
    apply([Assignment(tuple(path.split(".")), value)], values, FitConfiguration)
    return values


def test_a_value_comes_where_its_path_leads() -> None:
    values = {"training": {"pretext": {"name": "contrastive"}}}
    applied("training.pretext.temperature", 0.1, values)
    applied("training.momentum", 0.8, values)
    applied("bank_size", 9, values)
    assert values == {"training": {"pretext": {"name": "contrastive", "temperature": 0.1}, "momentum": 0.8}} | {
        "bank_size": 9
    }


def test_of_several_kinds_the_default_is_meant_where_none_is_named() -> None:
    default = FitConfiguration().training.pretext
    assert applied("training.pretext.head_width", 3) == {
        "training": {"pretext": {"name": default.name, "head_width": 3}}
    }


@pytest.mark.parametrize(
    ("path", "where", "accepted"),
    [
        ("speed", "the configuration has no 'speed'", "training"),
        ("training.stepps", "training has no 'stepps'", "steps"),
        ("training.pretext.temperature", "training.pretext has no 'temperature'", "opacity"),  # cutpaste has none
        ("nowhere.at.all", "the configuration has no 'nowhere'", "detector"),
        ("training.steps.more", "training.steps is one value", ""),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_what_is_there(path: str, where: str, accepted: str) -> None:
    with pytest.raises(UsageError) as error:
        applied(path, 1)
    assert f"--set {path}: {where}" in str(error.value)
    assert accepted in str(error.value)


def test_a_field_is_given_once() -> None:
    with pytest.raises(UsageError, match=r"--set training\.steps: .*decided it already: 5"):
        applied("training.steps", 6, {"training": {"steps": 5}})
    with pytest.raises(UsageError, match=r"its default, .*already: 'cutpaste'"):
        applied("training.pretext.name", "rotation", {"training": {"pretext": {"name": "cutpaste"}}})
    with pytest.raises(UsageError, match="already: 7"):
        applied("training.steps", 6, applied("training.steps", 7))


# --- on the command line ----------------------------------------------------------------------------------------------


def test_set_reaches_the_configuration(run: Run, data: Path, tmp_path: Path) -> None:
    outcome = run(
        "train", CATEGORY, "--data", data, "--models", tmp_path / "models", "--runs", tmp_path / "runs", *TINY,
        "--pretext", "distribution_augmented", "--set", "training.pretext.temperature=0.1",
        "--set", 'training.pretext.transforms=["hflip", "rot90"]', "--set", "training.pretext.head_depth=0",
        "--set", "detector.encoder.embedding=last", "--set", "training.momentum=0.8",
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    manifest = json.loads((ModelStore(tmp_path / "models").folder(CATEGORY, 1) / "manifest.json").read_text())
    training = manifest["configuration"]["training"]["fit"]["training"]
    assert training["pretext"] == {
        "name": "distribution_augmented", "temperature": 0.1, "transforms": ["hflip", "rot90"],
        "head_depth": 0, "head_width": 512, "head_outputs": 128, "flip": True,
    }  # fmt: skip
    assert training["momentum"] == 0.8
    assert manifest["configuration"]["detector"]["encoder"]["embedding"] == "last"


def test_what_is_set_holds_for_every_member(run: Run, data: Path, tmp_path: Path) -> None:
    outcome = run(
        "train", CATEGORY, "--data", data, "--models", tmp_path / "models", "--runs", tmp_path / "runs", *TINY,
        "--set", "training.pretext.hue=0.2", "--member", "light=0.3",
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    manifest = json.loads((ModelStore(tmp_path / "models").folder(CATEGORY, 1) / "manifest.json").read_text())
    fit = manifest["configuration"]["training"]["fit"]
    pretexts = [fit["training"]["pretext"], *fit["pretexts"]]
    assert [(pretext["light"], pretext["hue"]) for pretext in pretexts] == [(0.1, 0.2), (0.3, 0.2)]


@pytest.mark.parametrize(
    ("assignment", "mentions"),
    [
        ("training.pretext.temperatur=0.1", ("training.pretext", "temperatur", "temperature, head_depth")),
        ("training.pretext.temperature=-1", ("training.pretext", "temperature", "-1", "greater than 0")),
        ("training.pretext.temperature=warm", ("temperature", "'warm'")),
        ("training.pretext.transforms=rot90", ("training.pretext", "transforms")),
        ("training.steps=3", ("training.steps", "6")),  # TINY has --steps
        ("training.steps", ("training.steps", "PATH=VALUE")),
        ("=3", ("PATH=VALUE",)),
    ],
)
def test_what_cannot_be_set_is_refused_before_training(
    run: Run, data: Path, tmp_path: Path, assignment: str, mentions: tuple[str, ...]
) -> None:
    outcome = run(
        "train", CATEGORY, "--data", data, "--models", tmp_path / "models", "--runs", tmp_path / "runs", *TINY,
        "--pretext", "contrastive", "--set", assignment,
    )  # fmt: skip
    outcome.assert_refused(2, *mentions)
    assert not any(tmp_path.iterdir())
