"""Scoring by a service that runs, through its client."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from cli.errors import UsageError
from cli.images import kept, print_verdict
from cli.progress import count_bar, say

if TYPE_CHECKING:
    from client import Score

_KEY = "PLUMBLINE_API_KEY"  # not an option, which every user of the machine could read in its list of processes


def score_remotely(options: argparse.Namespace) -> dict[str, Any]:
    """Have a service score the images, several at once.

    Raises:
        UsageError: there is no such category or no image, the key does not do, or the address is none.
        PartlyFailed: after all others, where one could not be scored; at once, where it was interrupted.
    """
    from client import Client, Forbidden, NotFound, Unauthorized, find_images

    if options.version_number is not None:
        raise UsageError("--version-number is not for --url: the service scores by the version that it serves")
    images = [path for given in options.images for path in (find_images(given) if given.is_dir() else [given])]
    if not images:
        raise UsageError(f"there is no image in {', '.join(map(str, options.images))}")
    try:
        client = Client(options.url, api_key=os.environ.get(_KEY) or None)
    except ValueError as error:
        raise UsageError(f"--url or {_KEY}: {error}") from error
    results: list[dict[str, Any]] = []
    said = {"category": options.category, "url": options.url, "images": results}
    with client, count_bar() as bar, kept(said, len(images), "scored", options.out and options.out / "scores.json"):
        for outcome in client.score_batch(options.category, images):
            if isinstance(outcome.error, NotFound):
                raise UsageError(f"{options.url}: {outcome.error.detail}")
            if isinstance(outcome.error, Unauthorized | Forbidden):
                raise UsageError(f"{options.url}: {outcome.error.detail} (the key is read from {_KEY})")
            if outcome.score is None:
                say(f"{outcome.name}: {outcome.error}")
                results.append({"image": outcome.name, "error": str(outcome.error)})
            else:
                results.append({"image": outcome.name, **_facts(outcome.name, outcome.score)})
            bar("scoring", len(results), len(images))
    return said


def _facts(name: str, score: Score) -> dict[str, Any]:
    print_verdict(name, score.verdict, score.image_score, score.threshold, score.p_value, score.image_score_error)
    facts = score.model_dump(mode="json", exclude_none=True)
    kept = ("id", "version", "verdict", "image_score", "image_score_error", "threshold", "p_value", "regions")
    return {key: facts[key] for key in kept}
