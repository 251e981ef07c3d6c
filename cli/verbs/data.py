"""Fetch a data set that the paper's tables are measured on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cli.errors import UsageError
from cli.folders import check_folder
from cli.options import add_json
from cli.progress import count_bar, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the data sets."""
    sets = parser.add_subparsers(metavar="DATASET", required=True)
    mvtec = sets.add_parser(
        "mvtec",
        help="MVTec AD (5.3 GB, CC BY-NC-SA 4.0)",
        description="MVTec AD: 15 categories of industrial parts. The licence is shown before anything is fetched.",
    )
    mvtec.add_argument("--out", type=Path, required=True, help="folder that gets one folder a category")
    mvtec.add_argument("--accept-licence", action="store_true", help="you have read the licence and accept it")
    mvtec.add_argument("--url", help="a mirror of the official archive; the content is checked all the same")
    mvtec.add_argument("--keep-archive", action="store_true", help="leave the archive in --out after unpacking")
    add_json(mvtec)
    mvtec.set_defaults(action=_mvtec)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Fetch the data set."""
    result: dict[str, Any] = options.action(options)
    return result


def _mvtec(options: argparse.Namespace) -> dict[str, Any]:
    from training.mvtec import LICENCE, fetch

    if options.url is not None:
        address = urlsplit(options.url)
        if address.scheme not in ("http", "https") or address.path.endswith("/") or not address.path:
            raise UsageError(
                f"--url {options.url} is no file on a web server; accepted: http://... or https://.../FILE"
            )
    check_folder("--out", options.out)
    say(LICENCE)
    if not (options.accept_licence or _agrees()):
        raise UsageError("the licence was not accepted: give --accept-licence once you have read it")
    with count_bar() as bar:
        added = fetch(options.out, url=options.url, keep_archive=options.keep_archive, progress=bar)
    print(f"{options.out}: added {', '.join(added)}" if added else f"{options.out} has all categories already")
    return {"folder": str(options.out), "added": added}


def _agrees() -> bool:
    """Ask, where there is somebody to ask."""
    if not sys.stdin.isatty():
        return False
    say("Do you accept this licence? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
