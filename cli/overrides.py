"""``--set dotted.path=value``: any field of a configuration, also those that have no option of their own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard, get_args

from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo

from cli.errors import UsageError


class Assignment(NamedTuple):
    """One ``--set``."""

    path: tuple[str, ...]
    value: JsonValue

    def __str__(self) -> str:
        return f"--set {'.'.join(self.path)}"


def add_set(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--set``, which may be given many times."""
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        type=_assignment,
        metavar="PATH=VALUE",
        help="any field of the configuration by its dotted path, the value as JSON or a plain word: "
        "training.pretext.temperature=0.1",
    )


def apply(assignments: Sequence[Assignment], values: dict[str, Any], kind: type[BaseModel]) -> None:
    """Put each value into ``values``, the nested dictionary that ``kind`` is going to be made of.

    Raises:
        UsageError: if a path leads to no field, or to one that an option, given or not, or another ``--set`` decides.
    """
    for assignment in assignments:
        *parents, last = assignment.path
        node, model = values, kind
        for depth, part in enumerate(parents):
            field = _field(assignment, model, depth)
            node = node.setdefault(part, {})
            model = _model(assignment, field, node, depth)
        _field(assignment, model, len(parents))
        if last in node:
            raise UsageError(
                f"{assignment}: an option, its default, or another --set has decided it already: {node[last]!r}"
            )
        node[last] = assignment.value


def parse_value(text: str) -> JsonValue:
    """A value as JSON, or else the word itself."""
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value


def _assignment(text: str) -> Assignment:
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r} is not PATH=VALUE, as in training.momentum=0.8")
    return Assignment(tuple(path.split(".")), parse_value(value))


def _field(assignment: Assignment, model: type[BaseModel], depth: int) -> FieldInfo:
    """The field that the path names at ``depth``, inside ``model``."""
    name = assignment.path[depth]
    if name not in model.model_fields:
        where = ".".join(assignment.path[:depth]) or "the configuration"
        raise UsageError(f"{assignment}: {where} has no {name!r}; accepted: {', '.join(model.model_fields)}")
    return model.model_fields[name]


def _model(assignment: Assignment, field: FieldInfo, node: dict[str, Any], depth: int) -> type[BaseModel]:
    """The class of what ``node`` describes; of several, the one that its name or else the default decides."""
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_model(kind)]
    if not kinds:
        raise UsageError(f"{assignment}: {'.'.join(assignment.path[: depth + 1])} is one value, without fields")
    if len(kinds) == 1:
        return kinds[0]
    name = node.setdefault("name", field.default.name)
    return next(kind for kind in kinds if kind.model_fields["name"].default == name)


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
