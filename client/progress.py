"""Telling how far a batch is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Told how many are done, and of how many."""


@contextmanager
def progress_of(wish: bool | Progress) -> Iterator[Progress]:
    """A bar on standard error where ``wish`` is True, nothing where it is False, else what was given.

    Raises:
        ImportError: a bar, without rich.
    """
    if callable(wish):
        yield wish
    elif wish:
        with _bar() as bar:
            yield bar
    else:
        yield lambda done, total: None


@contextmanager
def _bar() -> Iterator[Progress]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
    except ImportError as error:
        raise ImportError("a progress bar needs rich: pip install plumbline-client[progress]") from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("scoring", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
