"""What a person at the terminal sees while work goes on, on standard error; standard output is for results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from training.reproduction.study import Event
    from training.trainer import Progress as TrainingProgress

LINE_SECONDS = 30  # between two lines where there is no terminal to draw a bar on

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line about what is being done."""
    console.print(text, markup=False, soft_wrap=True)


def _bars(last: ProgressColumn) -> Progress:
    """Bars that count, ``last`` being their last column."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        last,
        console=console,
        transient=not console.is_terminal,
    )


class TrainingBar:
    """Step, loss, accuracy, images per second and time left of stage 1; beside it what else is counted."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None  # a run of no step has no bar
        self._counted: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def __call__(self, report: TrainingProgress) -> None:
        detail = (
            f"loss {report.loss:.3f}  accuracy {report.accuracy:.3f}  {report.images_per_second:.0f} crops/s  "
            f"{report.seconds_left / 60:.1f} min left"
        )
        if self._task is None:
            self._task = self._progress.add_task("training", detail=detail)
        self._progress.update(self._task, completed=report.step, total=report.steps, detail=detail)
        self._line(f"step {report.step} of {report.steps}  {detail}", report.step == report.steps)

    def count(self, what: str, done: int, total: int) -> None:
        """Show how much of something is done."""
        if what not in self._counted:
            self._counted[what] = self._progress.add_task(what, total=total, detail="")
        self._progress.update(self._counted[what], completed=done)
        self._line(f"{what}: {done} of {total}")

    def _line(self, text: str, last: bool = False) -> None:
        """A log file has no bar; it gets a line now and then."""
        if not console.is_terminal and (last or time.monotonic() - self._said > LINE_SECONDS):
            say(text)
            self._said = time.monotonic()


@contextmanager
def training_bar() -> Iterator[TrainingBar]:
    """A bar for the reports of ``Trainer.run``."""
    with _bars(TextColumn("{task.fields[detail]}")) as progress:
        yield TrainingBar(progress)


class CountBar:
    """A bar that is told (what, done, total)."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)


@contextmanager
def count_bar() -> Iterator[CountBar]:
    """Bars for work that is counted."""
    with _bars(TimeRemainingColumn()) as progress:
        yield CountBar(progress)


class StudyBar:
    """A bar for each training under way, and one for how many have ended."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._all = progress.add_task("all trainings", total=total, detail="")
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        label = event.trial.label
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=None, detail="")
        report = event.progress
        if report is None:
            self._progress.update(self._tasks[label], detail=event.stage)
            say(f"{label}: {event.stage}")
        else:
            detail = f"loss {report.loss:.3f}  accuracy {report.accuracy:.3f}  {report.seconds_left / 60:.1f} min left"
            self._progress.update(self._tasks[label], completed=report.step, total=report.steps, detail=detail)
            now = time.monotonic()
            if not console.is_terminal and now - self._said.setdefault(label, now) > LINE_SECONDS:
                say(f"{label}: step {report.step} of {report.steps}  {detail}")
                self._said[label] = now
        if event.ended:
            self._progress.remove_task(self._tasks.pop(label))
            self._progress.advance(self._all)


@contextmanager
def study_bar(total: int) -> Iterator[StudyBar]:
    """Bars for the events of a study of ``total`` trainings."""
    with _bars(TextColumn("{task.fields[detail]}")) as progress:
        yield StudyBar(progress, total)
