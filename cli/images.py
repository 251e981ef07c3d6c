"""Verbs that work through image files, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import WRONG_INPUT, PartlyFailed
from cli.progress import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def each_image(
    paths: Sequence[Path], work: Callable[[int, Path, NDArray[np.uint8]], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read and work on one image before the next is read; a file that is no image is reported and passed over.

    Args:
        work: takes the number of the file, its path and the image; returns facts for the result.

    Returns:
        What there is to say of every file, ``image`` being its path, and what was wrong with some.
    """
    from models.images import ImageError, read_image

    results: list[dict[str, Any]] = []
    failures: list[str] = []
    for number, path in enumerate(paths):
        try:
            image = read_image(path)
        except ImageError as error:
            say(str(error))
            failures.append(str(error))
            results.append({"image": str(path), "error": str(error).removeprefix(f"{path}: ")})
            continue
        results.append({"image": str(path), **work(number, path, image)})
    return results, failures


def finish(outcome: dict[str, Any], failures: list[str], done: str, record: Path | None) -> dict[str, Any]:
    """Write the result to ``record``, and give it back.

    Raises:
        PartlyFailed: where there were failures; ``done`` says what could not be done.
    """
    if record:
        record.write_text(json.dumps(outcome, indent=2) + "\n")
        print(f"written to {record.parent}")
    if failures:
        message = f"{len(failures)} of {len(outcome['images'])} files could not be {done}; the first, {failures[0]}"
        raise PartlyFailed(message, outcome, WRONG_INPUT)
    return outcome


def print_verdict(name: str | Path, verdict: str, score: float, threshold: float, p_value: float, error: float) -> None:
    """The line of one scored image."""
    bar = f" ± {error:.4f}" if error else ""
    print(f"{name}: {verdict}, score {score:.4f}{bar} (threshold {threshold:.4f}), p-value {p_value:.3f}")
