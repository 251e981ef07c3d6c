"""Folders that a verb is going to write to, looked at before the work."""

from __future__ import annotations

import os
from pathlib import Path

from cli.errors import UsageError


def check_folder(option: str, folder: Path) -> None:
    """See that this process may put files into a folder, or may make it.

    Args:
        option: which named it.

    Raises:
        UsageError: it, or what it would be made in, is a file, or may not be written to.
    """
    place = folder.absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{option} {folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {folder}: {there} may not be written to; name another folder")
