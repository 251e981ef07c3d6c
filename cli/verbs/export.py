"""Write a version for other engines: image in; score map, image score and anomaly map out, checked against PyTorch.

The folder holds the model and model.json: thresholds, geometry and the result of the check.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cli.errors import UsageError
from cli.loading import load_detector, operation_in_force
from cli.options import add_json, add_models, add_threads, add_version, positive_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("category", metavar="CATEGORY")
    parser.add_argument("--format", choices=("onnx", "openvino"), required=True, help="of the model")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, which must not exist yet")
    add_models(parser)
    add_version(parser)
    parser.add_argument(
        "--batch",
        type=_batch,
        default="dynamic",
        help="images that the model takes at once: a number, or dynamic for any number (default: %(default)s)",
    )
    parser.add_argument(
        "--check-images",
        type=positive_integer,
        metavar="N",
        help="check on so many of the calibration images (default: all)",
    )
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(device="cpu")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Export the version that decides now, with its thresholds.

    Raises:
        UsageError: the folder is there, the density cannot be expressed, or a library is not installed.
        ExportError: the model does not agree with PyTorch.
    """
    from models.densities.traceable import NotTraceable
    from models.export import export
    from models.inference import FLOAT32
    from models.sessions import MissingExtra

    # By float32, which the model computes in: its own plan may need a GPU or a compiler.
    detector = load_detector(options, options.category, plan=FLOAT32)
    try:
        report = export(
            detector,
            operation_in_force(options, detector),
            options.out,
            options.format,
            batch=options.batch,
            check_images=options.check_images,
        )
    except (FileExistsError, MissingExtra, NotTraceable) as error:
        raise UsageError(str(error)) from error
    check = report["check"]
    print(f"{options.out}: {options.category} version {detector.version} for {options.format}")
    print(f"largest differences to PyTorch on {check['images']} calibration images:")
    for name, difference in check["largest_difference"].items():
        print(f"  {name:15} {difference:.2e}  ({check['allowed'][name]:.2e} is allowed)")
    times = check["milliseconds"]
    print(f"an image: {times['torch']:.1f} ms by PyTorch, {times['exported']:.1f} ms by the exported model")
    return {"folder": str(options.out), **report}


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    try:
        return positive_integer(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor dynamic") from error
