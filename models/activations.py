"""Which version of a category was made active, when, and by whom: one file of the store, the latest last."""

from __future__ import annotations

import getpass
from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from models.artifact import ArtifactError


class Activation(BaseModel):
    """A version became the active one.

    Attributes:
        author: who did it; None where it was not recorded, as by a Plumbline that kept no history.
        rollback: whether it took earlier activations back, so that a further rollback goes further back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    time: AwareDatetime
    author: str | None
    rollback: bool = False


_FILE = TypeAdapter(list[Activation])


def read_activations(path: Path) -> list[Activation]:
    """The history in a file, the latest last; empty where there is no file.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        return _FILE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors(include_input=False)[0]["msg"]
        raise ArtifactError(f"{path} is damaged; move it away, then activate a version again ({reason})") from error


def rendered(activations: Sequence[Activation]) -> str:
    """The text of such a file."""
    return _FILE.dump_json(list(activations), indent=1).decode() + "\n"


def previous(activations: Sequence[Activation], present: Collection[int]) -> int | None:
    """The version to roll back to: the one active before the present one that is still there; None if there is none."""
    line: list[int] = []
    for activation in activations:
        if activation.rollback and activation.version in line:
            while line[-1] != activation.version:
                line.pop()
        elif line[-1:] != [activation.version]:
            line.append(activation.version)
    return next((version for version in reversed(line[:-1]) if version in present and version != line[-1]), None)


def system_user() -> str | None:
    """The name of the user that this process runs as, if the system knows one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has a number only
        return None
