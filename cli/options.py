"""Options that several verbs share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.errors import UsageError

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
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``."""
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
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def member(kind: str, default: str, registry: Mapping[str, object], options: argparse.Namespace) -> dict[str, Any]:
    """The configuration of one member of a registry, as far as options give it.

    Args:
        kind: what the registry holds; the option of this name chooses among it.
        default: the member where none is chosen.
        registry: the members' configurations by name.
        options: those with the destination ``kind.SETTING`` give a setting, of whichever member; what the chosen one
            does not have is for its configuration to refuse.

    Raises:
        UsageError: if there is no such member.
    """
    name = getattr(options, kind) or default
    if name not in registry:
        raise UsageError(f"--{kind} {name!r} is unknown; accepted: {', '.join(sorted(registry))}")
    given = {to.removeprefix(f"{kind}."): value for to, value in vars(options).items() if to.startswith(f"{kind}.")}
    return {"name": name, **{setting: value for setting, value in given.items() if value is not None}}
