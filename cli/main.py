"""The console script ``plumbline``: parses the arguments, runs a verb, turns what went wrong into a sentence."""

from __future__ import annotations

import argparse
import io
import json
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cli.errors import PartlyFailed, exit_status, sentence
from models.allocator import keep_freed_memory
from models.openmp import wait_briefly

# Each is a module of cli.verbs with add_arguments and run, imported only when its verb is called.
VERBS = {
    "demo": "synthesise a product, learn it, serve it and score two parts",
    "train": "learn a category from images of good parts",
    "evaluate": "measure a detector on test images",
    "score": "score images",
    "explain": "show what made the score of images",
    "export": "write a version for ONNX Runtime or OpenVINO",
    "serve": "serve the active versions over HTTP",
    "keys": "make, list and revoke the keys that callers of the service need",
    "models": "list, show, activate and verify trained versions",
    "tune": "make a version that computes as fast as this machine can",
    "benchmark": "measure speed on this machine",
    "reproduce": "measure the paper's tables again",
    "analyse": "run the paper's ablations and analyses",
    "data": "fetch a data set of the paper",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``plumbline``.

    With ``--json`` the last line of standard output is one JSON object, however the verb ended: its result, as far as
    there is one, and ``error``, the sentence on standard error, where the exit status is not 0. SIGTERM ends a verb as
    Ctrl-C does.

    Args:
        arguments: the command line without the program's name; None for the process's own.

    Returns:
        0; 1 when the work failed; 2 for wrong arguments or input, even in part; 130 when interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names are any bytes: none may end a verb halfway
        sys.stdout.reconfigure(errors="backslashreplace")
    wait_briefly()  # a verb's module imports torch
    keep_freed_memory()
    options = _parser(arguments).parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status, result = _run(options)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if options.json:
        print(json.dumps(result), flush=True)
    return status


def _run(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """The exit status of a verb, and its result or what went wrong."""
    try:
        return 0, options.run(options)
    except (Exception, KeyboardInterrupt) as error:
        status = exit_status(error)
        if status is None:
            raise
        print(f"plumbline: {sentence(error)}", file=sys.stderr)
        done = error.result if isinstance(error, PartlyFailed) else {}
        return status, {**done, "error": sentence(error)}


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plumbline", description="Visual inspection learned from images of good parts only."
    )
    parser.add_argument("--version", action="version", version=f"plumbline {_version()}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, help_line in VERBS.items():
        sub = verbs.add_parser(name, help=help_line)
        if name in arguments[:1]:
            verb = import_module(f"cli.verbs.{name}")
            sub.description = verb.__doc__
            verb.add_arguments(sub)
            sub.set_defaults(run=verb.run)
    return parser


def _version() -> str:
    try:
        return version("plumbline")
    except PackageNotFoundError:  # ``python -m cli.main`` in a tree that is not installed
        return "of a tree that is not installed"


if __name__ == "__main__":
    sys.exit(main())
