"""A folder that holds the state of long work: one process at a time works there, and on one thing."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ABSENT = "absent"


@contextmanager
def held(lock: Path, busy: Exception) -> Iterator[None]:
    """Hold a lock file, made with its folder where they are missing; the system frees it when the process dies.

    Args:
        busy: raised where another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        yield


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The settings in which work that lies in a folder differs from what is asked for now, by their dotted paths.

    Args:
        theirs: nested settings as JSON has them, of the work that lies there.
        ours: those of now.
    """
    before, now = _flat(theirs), _flat(ours)
    return "; ".join(
        f"{path} is {before.get(path, ABSENT)} there and {now.get(path, ABSENT)} now"
        for path in dict.fromkeys((*before, *now))
        if before.get(path, ABSENT) != now.get(path, ABSENT)
    )


def _flat(settings: Mapping[str, Any], parents: str = "") -> dict[str, Any]:
    """The values by dotted path."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{parents}{name}.") if isinstance(value, Mapping) else {f"{parents}{name}": value}
    return found
