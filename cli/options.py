"""Options that several verbs share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

DEFAULT_MODELS = Path("artifacts")


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object, failures too")


def add_common(parser: argparse.ArgumentParser) -> None:
    """``--json``, ``--device`` and ``--threads``."""
    add_json(parser)
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: CUDA if there is)"
    )
    parser.add_argument(
        "--threads",
        type=positive_integer,
        default=os.cpu_count(),
        help="CPU threads of torch, FAISS and OpenCV (default: %(default)s)",
    )


def add_models(parser: argparse.ArgumentParser) -> None:
    """``--models``."""
    parser.add_argument(
        "--models", type=Path, default=DEFAULT_MODELS, help="folder that holds trained versions (default: %(default)s)"
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """``--data`` and ``--skip-broken``."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder that holds the categories, or the category's own (MVTec AD's layout), or one of good images",
    )
    parser.add_argument("--skip-broken", action="store_true", help="pass over files that are no readable image")


def add_version(parser: argparse.ArgumentParser) -> None:
    """``--version-number``."""
    parser.add_argument(
        "--version-number", type=positive_integer, metavar="N", help="which version (default: the active one)"
    )


def positive_integer(text: str) -> int:
    """An argument that must be a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive whole number")
    return value
