"""Serve the active versions over HTTP; every option may be set by a variable PLUMBLINE_* instead."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args, get_origin

from cli.options import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: the service's settings."""
    from service.settings import command_line_settings

    for name, field in command_line_settings().items():
        option = f"--{name.replace('_', '-')}"
        unset = field.is_required() or field.default in (None, ())  # what that means, the description says
        text = field.description if unset else f"{field.description} (default: {field.default})"
        if field.annotation is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        else:
            accepted = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            parser.add_argument(option, metavar=f"{{{','.join(accepted)}}}" if accepted else "VALUE", help=text)
    add_json(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Serve until stopped."""
    from service.server import run as serve
    from service.settings import command_line_settings, load_settings

    serve(load_settings(**{name: getattr(options, name) for name in command_line_settings()}))
    return {"stopped": True}
