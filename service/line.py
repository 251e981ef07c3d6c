"""What waits for the worker, and what of it begins next: the oldest first, whatever its category.

Images of one detector join a batch with the oldest of them; jobs, such as loading and explaining, run alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.detector import Detector
from service.pace import Pace

Result = TypeVar("Result")

MARGIN = 1.2  # over the pace measured: work takes longer where decoders share its cores


class DeadlineUnmet(Exception):
    """The image was not scanned: its score would have come too late."""


class Released(StrEnum):
    """Why a batch began: it was full, its oldest image had waited as long as one may, or the worker was idle; or a
    thread was free beside others that scan, where a batch is one image.
    """

    FULL = "full"
    WAITED = "waited"
    IDLE = "idle"
    JOINED = "joined"


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """A result, the seconds it waited and the seconds it took, those of all that one pass took with it."""

    value: Result
    waited_s: float
    ran_s: float


@dataclass(eq=False)
class Work:
    """A piece of work that somebody waits for; ``pace`` is what such work takes, ``begun_at`` None before it begins."""

    pace: Pace
    future: Future[Timed[Any]] = field(default_factory=Future, init=False)
    queued_at: float = field(default_factory=time.monotonic, init=False)
    begun_at: float | None = field(default=None, init=False)


@dataclass(eq=False)
class Job(Work):
    """A function to run."""

    function: Callable[[], Any]


@dataclass(eq=False)
class Image(Work):
    """An image to scan, (S, S, 3), placed; useless after ``deadline``, which is on the clock of ``time.monotonic``."""

    detector: Detector
    pixels: NDArray[np.uint8]
    deadline: float


class Line:
    """The work that waits, in the order it came. Not for several threads at once.

    Args:
        batch_size: most images of a batch.
        batch_wait_s: how long the oldest image waits for others; 0 releases what waits as soon as the worker is idle.
    """

    def __init__(self, batch_size: int, batch_wait_s: float) -> None:
        self._batch_size = batch_size
        self._batch_wait_s = batch_wait_s
        self._works: list[Work] = []

    @property
    def images(self) -> int:
        """Images that wait."""
        return sum(isinstance(work, Image) for work in self._works)

    @property
    def seconds(self) -> float:
        """What all that waits should take."""
        return sum(work.pace.typical_s for work in self._works)

    def add(self, work: Work) -> None:
        """Put work at the end."""
        self._works.append(work)

    def discard(self, work: Work) -> None:
        """Take work out, if it is there."""
        if work in self._works:
            self._works.remove(work)

    def clear(self, error: Exception) -> None:
        """Take all work out and give its waiters an error."""
        for work in list(self._works):
            self._refuse(work, error)

    def take(self) -> tuple[list[Work], Released | None]:
        """What begins now: a job, or a batch and why it was released; nothing where all that is there still waits."""
        works, reason = self._choose(time.monotonic())
        for work in works:
            self._works.remove(work)
        return [work for work in works if work.future.set_running_or_notify_cancel()], reason

    def join(self) -> Image | None:
        """The image that begins beside others now, however long it has waited; None unless it is an image's turn whose
        detector looks at images side by side.
        """
        now = time.monotonic()
        while self._works and isinstance(work := self._works[0], Image) and work.detector.scan.abreast:
            if self._dropped(work, now):
                continue
            self._works.remove(work)
            if work.future.set_running_or_notify_cancel():
                return work
        return None

    def patience_s(self) -> float | None:
        """How long until an image has waited as long as one may; None where none waits."""
        if not self._works:
            return None
        return max(0.0, self._works[0].queued_at + self._batch_wait_s - time.monotonic())

    def _choose(self, now: float) -> tuple[list[Work], Released | None]:
        seen: set[Detector] = set()
        for work in list(self._works):
            if not isinstance(work, Image):
                return [work], None
            if work.detector in seen or self._dropped(work, now):
                continue
            seen.add(work.detector)
            batch = self._batch(work.detector, now)
            if len(batch) == self._batch_size:
                return batch, Released.FULL
            if self._batch_wait_s == 0:
                return batch, Released.IDLE
            if work.queued_at + self._batch_wait_s <= now:
                return batch, Released.WAITED
        return [], None

    def _batch(self, detector: Detector, now: float) -> list[Work]:
        """The oldest images of a detector: as many as meet the deadlines of all of them, but at least one."""
        batch: list[Work] = []
        earliest = float("inf")
        for work in list(self._works):
            if not isinstance(work, Image) or work.detector is not detector or self._dropped(work, now):
                continue
            earliest = min(earliest, work.deadline)
            late = now + MARGIN * work.pace.typical_s * (len(batch) + 1) > earliest
            if len(batch) == self._batch_size or (batch and late):
                break
            batch.append(work)
        return batch

    def _dropped(self, image: Image, now: float) -> bool:
        """Whether the image cannot meet its deadline; if so it is taken out, and costs no work."""
        if now + image.pace.fastest_s <= image.deadline:
            return False
        self._refuse(image, DeadlineUnmet())
        return True

    def _refuse(self, work: Work, error: Exception) -> None:
        self._works.remove(work)
        if work.future.set_running_or_notify_cancel():
            work.future.set_exception(error)
