from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import torch

from tests.cli.support import CATEGORY, TINY, Outcome, run_main, run_program
from training.synthetic import generate


class Run(Protocol):
    def __call__(self, *arguments: str | Path) -> Outcome: ...


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A verb sets the thread counts of the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: ``run("models", "list")``."""
    return lambda *arguments: run_main(capsys, *arguments)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one small synthetic category; only to be read."""
    folder = tmp_path_factory.mktemp("data")
    generate(folder, CATEGORY, train=10, test_good=2, test_defects=1, image_size=64)
    return folder


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``trained`` is run in."""
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="session")
def trained(data: Path, desk: Path) -> Outcome:
    """``plumbline train`` as a user runs it, into the folders that it takes where none is named."""
    outcome = run_program("train", CATEGORY, "--data", data, "--json", *TINY, cwd=desk)
    assert outcome.status == 0, outcome.errors
    return outcome


@pytest.fixture(scope="session")
def models(trained: Outcome, desk: Path) -> Path:
    """The store that ``train`` published to; only to be read."""
    return desk / "artifacts"


@pytest.fixture
def own_models(models: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be changed."""
    return Path(shutil.copytree(models, tmp_path / "own models"))
