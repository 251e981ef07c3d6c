"""Measure speed on this machine; every figure is a ratio within one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cli.errors import UsageError
from cli.options import add_common, positive_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmarks."""
    parser.add_argument(
        "name",
        choices=("scan", "http"),
        help="scan: ResNet18Patch against DensePatch on one image. http: a running service against a loop in one "
        "process: throughput, latency, overload",
    )
    parser.add_argument("--repeats", type=positive_integer, default=7, help="scan: timed runs of the dense encoder")
    http = parser.add_argument_group("http")
    http.add_argument(
        "--folder",
        type=Path,
        default=Path("benchmark-http"),
        help="for the detector that is trained for it, or was by an earlier run (default: %(default)s)",
    )
    http.add_argument("--steps", type=positive_integer, default=100, help="of that training (default: %(default)s)")
    http.add_argument("--seconds", type=positive_integer, default=20, help="of each phase (default: %(default)s)")
    http.add_argument("--models", type=Path, help="a store of one's own instead, with --category and --images")
    http.add_argument("--category", help="which of them")
    http.add_argument("--images", type=Path, help="folder of image files to send")
    http.add_argument("--url", help="a service that runs already with these models (default: one is started)")
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and print its figures."""
    from models.device import set_threads

    set_threads(options.threads)
    result = _scan(options) if options.name == "scan" else _http(options)
    for name, value in result.items():
        print(f"{name:28} {value}")
    return result


def _scan(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.scan import measure
    from models.device import resolve_device

    return measure(resolve_device(options.device), repeats=options.repeats)


def _http(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.http import measure, prepare

    own = (options.models, options.category, options.images)
    if any(own) and not all(own):
        raise UsageError("--models, --category and --images belong together; give all of them, or none")
    if options.models:
        models, category = options.models, options.category
        images = sorted(path for path in options.images.rglob("*") if path.is_file())
        if not images:
            raise UsageError(f"{options.images} holds no file; name a folder of images (--images)")
    else:
        models, category, images = prepare(options.folder, options.steps, options.device)
    return measure(
        models,
        category,
        images,
        device=options.device,
        threads=options.threads,
        seconds=options.seconds,
        url=options.url,
    )
