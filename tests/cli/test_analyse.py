"""``plumbline analyse``: a table and its files, what two analyses share, and the refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.support import COMPUTE, Outcome
from tests.training.reproduction.support import write_fashion_mnist
from training.analysis.definitions import ANALYSES

SMOKE = ("--size", "smoke", "--json", *COMPUTE)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Fashion-MNIST; only to be read."""
    return write_fashion_mnist(tmp_path_factory.mktemp("fashion"), train=110)


@pytest.fixture
def analyse(run: Run, fashion: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """An analysis of class 0, with more arguments."""
    fixed = ("--data", fashion, "--out", tmp_path / "study", "--classes", "0")
    return lambda name, *arguments: run("analyse", name, *fixed, *SMOKE, *arguments)


def test_it_prints_and_writes_a_table_and_shares_what_it_trained(
    analyse: Callable[..., Outcome], tmp_path: Path
) -> None:
    chosen = ("--methods", "rotation", "--values", "10,0", "--steps", "2")
    outcome = analyse("contamination", *chosen)
    assert outcome.status == 0, outcome.errors
    assert [(line["value"], line["classifier"]) for line in outcome.result["table"]] == [
        ("0", "f"), ("10", "f"), ("0", "g"), ("10", "g"),
    ]  # fmt: skip
    assert outcome.result["table"][0]["paper"] == {"mean": 95.2, "deviation": 0.5}
    assert "| class | method " in outcome.output
    again = analyse("clean-images", *chosen)
    assert "0 figures to measure" in again.errors
    assert len(again.result["table"]) == 6
    files = {path.name for path in (tmp_path / "study").iterdir() if not path.name.startswith(".")}
    assert files == {"study.json", "cells.csv", "runs"} | {
        f"{name}.{ending}" for name in ("contamination", "clean-images") for ending in ("csv", "md", "png")
    }
    assert "size smoke, steps 2" in (tmp_path / "study" / "contamination.md").read_text()
    refused = analyse("contamination", *chosen[:-1], "3")
    assert refused.status == 2
    assert "another --out" in refused.result["error"]


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("batch", "--seeds", "1"), ("ANALYSIS batch is not known", *ANALYSES)),
        (("batch-size", "--values", "33"), ("--values 33", "8, 16, 32")),
        (("batch-size", "--methods", "rotation"), ("--methods rotation", "contrastive")),
        (("batch-size", "--classes", "10"), ("--classes 10", "accepted: all, 0, 1")),
        (("batch-size", "--dataset", "mnist"), ("--dataset mnist", "fashion-mnist, cifar10")),
        (("training-set-size",), ("250 training images of class 0", "there are 110")),
        (("batch-size", "--steps", "0"), ("--steps", "0")),
        (("batch-size", "--learning-rate", "0"), ("learning_rate", "0")),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(
    arguments: tuple[str, ...], mentions: tuple[str, ...], analyse: Callable[..., Outcome], tmp_path: Path
) -> None:
    analyse(*arguments).assert_refused(2, *mentions)
    assert not (tmp_path / "study").exists()
