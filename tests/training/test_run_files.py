"""The checkpoint and the log of a run: what a full disk and a power failure leave of them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from training.run_files import CHECKPOINT_FILE, LOG_FILE, RunWriteError, append_log, trim_log, write_checkpoint

STATE = {"step": 7, "weights": torch.zeros(10_000)}


@contextmanager
def space(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 5_000, 20_000, 40_500, 41_000])
def test_a_checkpoint_that_finds_no_space_leaves_the_one_before(tmp_path: Path, size: int) -> None:
    write_checkpoint(tmp_path, STATE)
    path = tmp_path / CHECKPOINT_FILE
    assert path.stat().st_size > 41_000
    with space(size), pytest.raises(RunWriteError, match=f"{path} cannot be written, .*: make room, then resume"):
        write_checkpoint(tmp_path, STATE | {"step": 8})
    assert torch.load(path, weights_only=True)["step"] == 7
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT_FILE]  # nothing takes the space that is lacking


def test_a_log_that_finds_no_space_is_named(tmp_path: Path) -> None:
    with space(10), pytest.raises(RunWriteError, match=f"{tmp_path / LOG_FILE} cannot be written"):
        append_log(tmp_path, {"step": 10})


@pytest.mark.parametrize(
    "torn", [b'{"step": 3, "loss": 0.', b"\0\0\0\0\0\n", b"\xff\xfe\n", b"{}\n", b"[]\n", b'{"step": 3}\n']
)
def test_what_a_checkpoint_does_not_have_leaves_the_log(tmp_path: Path, torn: bytes) -> None:
    for step in (1, 2):
        append_log(tmp_path, {"step": step})
    path = tmp_path / LOG_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    trim_log(tmp_path, 2)
    assert path.read_bytes() == whole
