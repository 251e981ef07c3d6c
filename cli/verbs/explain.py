"""Show what made the score of images: a picture of each, red where it raises the score, blue where it lowers it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import UsageError
from cli.folders import check_folder
from cli.images import each_image
from cli.loading import load_detector, operation_in_force
from cli.options import add_common, add_models, add_version, positive_integer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MOST_MISSED = 0.1  # of the difference to the baseline, before it is said


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("category", metavar="CATEGORY")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    add_models(parser)
    add_version(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for explanations.json and a PNG an image")
    parser.add_argument(
        "--method",
        choices=("integrated_gradients", "grad_cam"),
        default="integrated_gradients",
        help="pixel by pixel, in units of the score, or by the encoder's last features (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=positive_integer,
        help="of integrated gradients (default: 64); more come closer to the exact integral",
    )
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Explain one image after the other.

    Raises:
        UsageError: the detector's score cannot be explained.
        PartlyFailed: after all others, where a file was no image; at once, where it was interrupted.
    """
    from models.explanation import DEFAULT_STEPS, NotExplainable, check_explainable, explain
    from service.rendering import render_explanation

    if options.steps and options.method != "integrated_gradients":
        raise UsageError(f"--steps {options.steps} has no meaning for --method {options.method}")
    check_folder("--out", options.out)
    detector = load_detector(options, options.category)
    try:
        check_explainable(detector)
    except NotExplainable as error:
        raise UsageError(str(error)) from error
    operation = operation_in_force(options, detector)
    options.out.mkdir(parents=True, exist_ok=True)

    def explain_image(number: int, path: Path, image: NDArray[np.uint8]) -> dict[str, Any]:
        explanation = explain(detector, image, options.method, options.steps or DEFAULT_STEPS, operation)
        prediction = explanation.prediction
        picture = options.out / f"{number:04d}_{path.stem}_{options.method}.png"
        picture.write_bytes(render_explanation(image, explanation))
        result = {
            "verdict": prediction.verdict,
            "image_score": prediction.image_score,
            "window": prediction.placement.to_original_box(explanation.window).model_dump(),
            "picture": str(picture),
        }
        summary = f"{path}: {prediction.verdict}, score {prediction.image_score:.4f}"
        if explanation.baseline_score is not None:
            result |= {"baseline_score": explanation.baseline_score, "attribution_sum": explanation.total}
            summary += f"; {explanation.total:+.4f} of it above a baseline of {explanation.baseline_score:.4f}"
            if explanation.missed > MOST_MISSED:
                summary += f", which is not all of the difference: {explanation.missed:.0%} is missed (more --steps?)"
        print(summary)
        return result

    outcome = {
        "category": options.category,
        "version": detector.version,
        "method": options.method,
        "images": [],
    }
    return each_image(options.images, explain_image, outcome, "explained", options.out / "explanations.json")
