"""Verbs that work through image files, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import FAILED, WRONG_INPUT, PartlyFailed, UsageError, exit_status, sentence
from cli.progress import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def each_image(
    paths: Sequence[Path],
    work: Callable[[int, Path, NDArray[np.uint8]], dict[str, Any]],
    outcome: dict[str, Any],
    done: str,
    record: Path | None,
) -> dict[str, Any]:
    """Read and work on one image before the next is read; a file that is no image is reported and passed over.

    Args:
        work: takes the number of the file, its path and the image; returns facts for the result.
        outcome: the verb's result, its ``images`` empty; each gets what there is to say of a file, ``image`` being its
            path, and what was wrong with some.
        done: see ``kept``.
        record: likewise.

    Returns:
        The result.

    Raises:
        PartlyFailed: as of ``kept``.
    """
    from models.images import ImageError, read_image

    with kept(outcome, len(paths), done, record):
        for number, path in enumerate(paths):
            try:
                image = read_image(path)
            except ImageError as error:
                say(str(error))
                outcome["images"].append({"image": str(path), "error": str(error).removeprefix(f"{path}: ")})
                continue
            outcome["images"].append({"image": str(path), **work(number, path, image)})
    return outcome


@contextmanager
def kept(outcome: dict[str, Any], files: int, done: str, record: Path | None) -> Iterator[None]:
    """Around work that adds to ``outcome["images"]``: however it ends, what was done is written and told.

    Args:
        outcome: the verb's result.
        files: how many there are.
        done: what is done with them, for messages.
        record: where the result is written.

    Raises:
        PartlyFailed: at the end, where images have an ``error``; at once, where the work was broken off.
    """
    images = outcome["images"]
    try:
        try:
            yield
        finally:
            if record and images:
                record.parent.mkdir(parents=True, exist_ok=True)
                record.write_text(json.dumps(outcome, indent=2) + "\n")
                print(f"written to {record.parent}")
    except (KeyboardInterrupt, OSError, UsageError) as error:
        if not images:
            raise
        message = f"{sentence(error)}, after {len(images)} of {files} files"
        raise PartlyFailed(message, outcome, exit_status(error) or FAILED) from error
    if failures := [entry for entry in images if "error" in entry]:
        first = f"{failures[0]['image']}: {failures[0]['error']}"
        message = f"{len(failures)} of {len(images)} files could not be {done}; the first, {first}"
        raise PartlyFailed(message, outcome, WRONG_INPUT)


def print_verdict(name: str | Path, verdict: str, score: float, threshold: float, p_value: float, error: float) -> None:
    """The line of one scored image."""
    bar = f" ± {error:.4f}" if error else ""
    print(f"{name}: {verdict}, score {score:.4f}{bar} (threshold {threshold:.4f}), p-value {p_value:.3f}")
