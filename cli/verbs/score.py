"""Score images: verdict, score and p-value of each; with --out also the regions and the heatmaps.

With --url a service scores them, and nothing is loaded here; its API key is read from PLUMBLINE_API_KEY.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.folders import check_folder
from cli.images import each_image, print_verdict
from cli.loading import load_detector, operation_in_force
from cli.options import add_common, add_models, add_version
from cli.remote import score_remotely

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("category", metavar="CATEGORY")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    add_models(parser)
    add_version(parser)
    parser.add_argument("--out", type=Path, help="folder for scores.json and a heatmap PNG an image")
    parser.add_argument("--url", help="let this service score; images may then be folders, and --out has no heatmaps")
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Score one image after the other.

    Raises:
        PartlyFailed: after all others, where a file was no image; at once, where it was interrupted.
    """
    if options.out:
        check_folder("--out", options.out)
    if options.url is not None:
        return score_remotely(options)
    from service.rendering import render_overlay

    detector = load_detector(options, options.category)
    operation = operation_in_force(options, detector)
    point, region = operation.operating_point, operation.region_of_interest
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)

    def score_image(number: int, path: Path, image: NDArray[np.uint8]) -> dict[str, Any]:
        [prediction] = detector.predict([image], operation)
        score, error = prediction.image_score, prediction.image_score_error
        print_verdict(path, prediction.verdict, score, point.image_threshold, prediction.p_value, error)
        result = {
            "verdict": prediction.verdict,
            "image_score": score,
            "image_score_error": error,
            "p_value": prediction.p_value,
            "invalidity": prediction.invalidity,
            "regions": [region.model_dump(mode="json") for region in prediction.regions],
        }
        if options.out:
            heatmap = options.out / f"{number:04d}_{path.stem}_heatmap.png"
            heatmap.write_bytes(render_overlay(image, prediction, point.pixel_threshold, region=region))
            result["heatmap"] = str(heatmap)
        return result

    outcome = {
        "category": options.category,
        "version": detector.version,
        "operation": operation.number,
        "threshold": point.image_threshold,
        "images": [],
    }
    record = options.out / "scores.json" if options.out else None
    return each_image(options.images, score_image, outcome, "scored", record)
