"""Scoring by a service that runs, through its client."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from cli.errors import UsageError
from cli.images import finish, print_verdict
from cli.progress import count_bar, say

if TYPE_CHECKING:
    from client import Score

_KEY = "PLUMBLINE_API_KEY"  # not an option, which every user of the machine could read in its list of processes


def score_remotely(options: argparse.Namespace) -> dict[str, Any]:
    """Have a service score the images, several at once.

    Raises:
        UsageError: there is no such category, the key does not do, or the address is none.
        PartlyFailed: after all others, where one could not be scored.
    """
    from client import Client, Forbidden, NotFound, Unauthorized, find_images

    if options.version_number is not None:
        raise UsageError("--version-number is not for --url: the service scores by the version that it serves")
    images = [path for given in options.images for path in (find_images(given) if given.is_dir() else [given])]
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    try:
        client = Client(options.url, api_key=os.environ.get(_KEY) or None)
    except ValueError as error:
        raise UsageError(f"--url: {error}") from error
    with client, count_bar() as bar:
        for outcome in client.score_batch(options.category, images):
            if isinstance(outcome.error, Unauthorized | Forbidden | NotFound):
                raise UsageError(f"{options.url}: {outcome.error.detail} (the key is read from {_KEY})")
            if outcome.score is None:
                failures.append(f"{outcome.name}: {outcome.error}")
                say(failures[-1])
                results.append({"image": outcome.name, "error": str(outcome.error)})
            else:
                results.append({"image": outcome.name, **_facts(outcome.name, outcome.score)})
            bar("scoring", len(results), len(images))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    said = {"category": options.category, "url": options.url, "images": results}
    return finish(said, failures, "scored", options.out / "scores.json" if options.out else None)


def _facts(name: str, score: Score) -> dict[str, Any]:
    print_verdict(name, score.verdict, score.image_score, score.threshold, score.p_value, score.image_score_error)
    facts = score.model_dump(mode="json", exclude_none=True)
    kept = ("id", "version", "verdict", "image_score", "image_score_error", "threshold", "p_value", "regions")
    return {key: facts[key] for key in kept}
