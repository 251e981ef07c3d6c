"""Score images: verdict, score and p-value of each; with --out also the regions and the heatmaps."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cli.errors import WRONG_INPUT, PartlyFailed
from cli.loading import load_detector
from cli.options import add_common, add_models, add_version
from cli.progress import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("category", metavar="CATEGORY")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    add_models(parser)
    add_version(parser)
    parser.add_argument("--out", type=Path, help="folder for scores.json and a heatmap PNG an image")
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Score one image after the other; a file that is no image is reported and passed over.

    Raises:
        PartlyFailed: after all others, where there was such a file.
    """
    from models.images import ImageError, read_image
    from service.rendering import render_overlay

    detector = load_detector(options, options.category)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    for number, path in enumerate(options.images):
        try:
            image = read_image(path)
        except ImageError as error:
            say(str(error))
            failures.append(str(error))
            results.append({"image": str(path), "error": str(error).removeprefix(f"{path}: ")})
            continue
        [prediction] = detector.predict([image])
        print(
            f"{path}: {prediction.verdict}, score {prediction.image_score:.4f} "
            f"(threshold {detector.operating_point.image_threshold:.4f}), p-value {prediction.p_value:.3f}"
        )
        result = {
            "image": str(path),
            "verdict": prediction.verdict,
            "image_score": prediction.image_score,
            "p_value": prediction.p_value,
            "regions": [region.model_dump(mode="json") for region in prediction.regions],
        }
        if options.out:
            heatmap = options.out / f"{number:04d}_{path.stem}_heatmap.png"
            heatmap.write_bytes(render_overlay(image, prediction, detector.operating_point.pixel_threshold))
            result["heatmap"] = str(heatmap)
        results.append(result)
    outcome = {
        "category": options.category,
        "version": detector.version,
        "threshold": detector.operating_point.image_threshold,
        "images": results,
    }
    if options.out:
        (options.out / "scores.json").write_text(json.dumps(outcome, indent=2) + "\n")
        print(f"written to {options.out}")
    if failures:
        message = f"{len(failures)} of {len(results)} files could not be scored; the first, {failures[0]}"
        raise PartlyFailed(message, outcome, WRONG_INPUT)
    return outcome
