"""What a run of stage 1 writes: a checkpoint, which is whole or the one before, and a log of JSON lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.jsonl"


class RunWriteError(OSError):
    """A file of a run cannot be written; the message names it and says what is kept."""


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write beside the old checkpoint, then put it in its place.

    Raises:
        RunWriteError: there is no space for it; the old one stays.
    """
    path = folder / CHECKPOINT_FILE
    partial = path.with_suffix(".partial")
    with _writing(path):
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except Exception:
            partial.unlink(missing_ok=True)  # or it takes the space that is lacking
            raise
        partial.replace(path)


def append_log(folder: Path, entry: Mapping[str, Any]) -> None:
    """Add a line, with ``step`` in it.

    Raises:
        RunWriteError: there is no space for it.
    """
    path = folder / LOG_FILE
    with _writing(path), path.open("a") as log:
        log.write(json.dumps(entry) + "\n")


def trim_log(folder: Path, step: int) -> None:
    """Take from the log what a killed run wrote after its checkpoint of ``step``, whole or not: it is done again.

    Raises:
        RunWriteError: as ``append_log``.
    """
    path = folder / LOG_FILE
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    with _writing(path):
        path.write_text("".join(f"{line}\n" for line in lines if _logged_step(line) <= step))


def _logged_step(line: str) -> float:
    """The step of a line; of half a line, or of what a power failure left of one, beyond all."""
    try:
        step: int = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf
    return step


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # of a full disk torch may say no more than that a position is wrong
        raise RunWriteError(
            f"{path} cannot be written, perhaps for lack of space ({error}); the last checkpoint is kept: make room, "
            "then resume"
        ) from error
