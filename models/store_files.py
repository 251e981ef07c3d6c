"""The files of a model store: written so that a reader finds the old or the new, and read with no trust in them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.artifact import ArtifactError, sync_folder

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}")
"""Of a category, and of a record."""

NUMBER = re.compile(r"[1-9][0-9]{0,17}")
"""Of a version."""

_LONGEST_POINTER = 20  # bytes: more than a number and its newline take


def numbers_in(folder: Path) -> set[int]:
    """The versions that a folder has entries of."""
    if not folder.is_dir():
        return set()
    return {int(entry.name) for entry in folder.iterdir() if NUMBER.fullmatch(entry.name)}


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_read_only(folder: Path) -> None:
    """Make every file readable to all and writable to none; folders keep theirs, so that a version can be deleted.

    Some writers leave a file to its owner alone, but who serves is another user than who trained.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)


def write_file(
    path: Path, content: str | bytes, mode: int = 0o666, prepare: Callable[[int], None] | None = None
) -> None:
    """Write a file so that a reader finds the old content or the new; nobody else writes it meanwhile.

    Args:
        content: text is written in UTF-8.
        mode: of the file, less what the process masks.
        prepare: is given the new file's descriptor before anything is written.
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        if prepare is not None:
            prepare(file.fileno())
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def record_text(name: str, payload: Mapping[str, Any]) -> str:
    """The text of a record.

    Raises:
        ValueError: the name may not be that of one, or JSON cannot express the payload.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no record name: use 1 to 64 of a-z, A-Z, 0-9, '-' and '_'")
    try:
        return json.dumps(payload, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"record {name!r} is not JSON: {error}") from error


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object of a record.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"record {path} is damaged ({error}); write it again") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"record {path} is damaged (not a JSON object); write it again")
    return content


def read_pointer(path: Path, advice: str) -> int | None:
    """The version that a pointer's file names; None where there is no file.

    Args:
        advice: what mends it, such as "activate a version".

    Raises:
        ArtifactError: the file is damaged.
        PermissionError: this process may not read it, which says nothing of what it holds.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            content = os.read(descriptor, _LONGEST_POINTER)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; remove it, then {advice}") from error
    text = content.decode("ascii", errors="replace")
    if not NUMBER.fullmatch(text.removesuffix("\n")):
        raise ArtifactError(f"{path} should hold a version's number, but begins {text!r}; {advice} again")
    return int(text)
