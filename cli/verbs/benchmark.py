"""Measure speed on this machine; every figure is a ratio within one run."""

from __future__ import annotations

import argparse
from typing import Any

from cli.options import add_common, positive_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmarks."""
    parser.add_argument("name", choices=("scan",), help="scan: ResNet18Patch against DensePatch on one image")
    parser.add_argument("--repeats", type=positive_integer, default=7, help="timed runs of the dense encoder")
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and print its figures."""
    from benchmarks.scan import measure
    from models.device import resolve_device, set_threads

    set_threads(options.threads)
    result = measure(resolve_device(options.device), repeats=options.repeats)
    for name, value in result.items():
        print(f"{name:24} {value}")
    return result
