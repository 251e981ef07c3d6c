"""What a failure means for the caller: a sentence and an exit status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from models.artifact import ArtifactError
from models.images import ImageError
from models.store_errors import StoreError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


class UsageError(Exception):
    """Arguments that do not fit together or name what does not exist."""


class PartlyFailed(Exception):
    """Some of what a verb had to do was not done; the rest was.

    Args:
        message: how much is left, and why.
        result: the verb's, the failures among it.
        status: the exit status.
    """

    def __init__(self, message: str, result: dict[str, Any], status: int) -> None:
        super().__init__(message)
        self.result = result
        self.status = status


def exit_status(error: BaseException) -> int | None:
    """The exit status for an expected error; None for one that is a defect of this program."""
    if isinstance(error, PartlyFailed):
        return error.status
    # By name, so that a serving image needs no training code to tell.
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, KeyboardInterrupt) or "TrainingInterrupted" in names:
        return INTERRUPTED
    if isinstance(error, UsageError | ImageError | StoreError | ValidationError):
        return WRONG_INPUT
    if _room_missing(error):
        return WRONG_INPUT
    if names & {
        "DataError",
        "SettingsError",
        "DeviceError",
        "SyntheticError",
        "TrainingSettingsError",
        "WeightsError",
        "TooFew",
    }:
        return WRONG_INPUT
    if isinstance(error, ArtifactError | OSError) or names & {"ExportError", "TrainingError"}:
        return FAILED
    return None


def sentence(error: BaseException) -> str:
    """One line for standard error."""
    if isinstance(error, ValidationError):
        return "; ".join(_problem(one) for one in error.errors() if one["type"] != "default_factory_not_called")
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if _room_missing(error):
        return f"{error}: this is a serving image, without what trains; use a full installation"
    return str(error)


def _problem(problem: Mapping[str, Any]) -> str:
    """What a configuration class says of one value."""
    path, message = list(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{'.'.join(path[:-1])} has no setting {path[-1]!r} (given: {problem['input']!r})"
    if isinstance(problem["input"], dict):  # settings that do not fit together: the message names them
        return ": ".join([*filter(None, [".".join(path)]), message])
    return f"{'.'.join(path)} is {problem['input']!r}: {message}"


def _room_missing(error: BaseException) -> bool:
    """Whether a verb wanted a room that a serving image leaves out."""
    return isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in ("training", "benchmarks")
