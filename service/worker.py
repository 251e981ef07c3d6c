"""The one thread that owns the device.

FAISS on a GPU is not safe for two threads even when both only read, and passes that each take all cores fight for them;
so every scan, explanation and loading is work of this thread. On a CPU that has more to do than one image it lets
lanes, threads that share out the cores, take what waits, one image each.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from models.detector import Detector
from models.lanes import abreast, side_by_side
from service.line import MARGIN, Image, Job, Line, Released, Timed, Work
from service.pace import Pace

Result = TypeVar("Result")
Seen = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

# Long enough for the batch at hand, short enough to stop before a container runtime kills the process.
_STOP_TIMEOUT_S = 8.0
# For so long lanes take more; then the detectors of the first images are let go of, which may have been unloaded.
_LANES_S = 1.0
# Batches that fail one after the other until it is the device's fault, not an image's.
_MOST_FAILURES = 3


class WorkerUnavailable(Exception):
    """The worker is dead, hung or stopping; the message says which."""


class DeviceOutOfMemory(Exception):
    """The device has not enough memory for this one image."""


class Worker:
    """Scans images in batches and runs jobs, on its own thread.

    Args:
        line: where work waits.
        hang_s: seconds an image may take on the device, a batch in one pass as many times as much; what takes longer
            counts as hung.
        job_hang_s: seconds a job may take, likewise.
        on_batch: told the size of every batch and why it was released, on the thread that scans it.
    """

    def __init__(
        self, line: Line, *, hang_s: float, job_hang_s: float, on_batch: Callable[[int, Released], None]
    ) -> None:
        self._line = line
        self._hang_s = hang_s
        self._job_hang_s = job_hang_s
        self._on_batch = on_batch
        self._changed = threading.Condition()  # held where the line or its end changes, so that no work is forgotten
        self._ended: str | None = "the worker has not been started"
        self._running: list[Work] = []  # what has been taken and is not done; much of it at once where there are lanes
        self._failures = 0
        self._last_error = ""
        self._paces: WeakKeyDictionary[Detector, Pace] = WeakKeyDictionary()
        self._thread = threading.Thread(target=self._loop, name="worker", daemon=True)

    @property
    def depth(self) -> int:
        """Images that wait."""
        with self._changed:
            return self._line.images

    def start(self) -> None:
        """Start the thread."""
        self._ended = None
        self._thread.start()

    def stop(self) -> None:
        """Refuse the work that waits, finish what runs, end the thread."""
        self._end("the service is stopping")
        self._thread.join(_STOP_TIMEOUT_S)

    def unavailable(self) -> str | None:
        """Why the worker takes no work now; None where it does."""
        if self._ended is not None:
            return self._ended
        if not self._thread.is_alive():
            return "the worker's thread is gone"
        with self._changed:
            running, begun = list(self._running), self._begun()
        if not begun:
            return None
        elapsed = time.monotonic() - min(begun)
        what, allowed = "job", self._job_hang_s
        if isinstance(first := running[0], Image):
            together = 1 if first.detector.scan.abreast else len(running)
            what, allowed = "batch", self._hang_s * together
        if elapsed > allowed:
            return f"the worker hangs: a {what} has been running for {elapsed:.0f} s, {allowed:g} s are allowed"
        return None

    def failure(self) -> str | None:
        """Why the worker is not healthy: it takes no work, or fails at all of it; None where it is."""
        if (unavailable := self.unavailable()) is not None:
            return unavailable
        if self._failures >= _MOST_FAILURES:
            return f"the last {self._failures} batches failed, the last one of {self._last_error}"
        return None

    def pace(self, detector: Detector) -> Pace:
        """What the scan of one image takes."""
        with self._changed:
            return self._paces.setdefault(detector, Pace())

    def wait_s(self) -> float:
        """How long what is there now should take."""
        with self._changed:
            rest = sum(work.pace.typical_s for work in self._running)
            if begun := self._begun():
                rest = max(0.0, rest - (time.monotonic() - max(begun)))
            return MARGIN * (rest + self._line.seconds)

    def _begun(self) -> list[float]:
        """When what runs began, of as much as has."""
        return [work.begun_at for work in self._running if work.begun_at is not None]

    async def scan(self, detector: Detector, pixels: NDArray[np.uint8], deadline: float) -> Timed[Seen]:
        """Queue an image and wait for what there is to see in it: one each of what a ``Look`` has.

        A waiter that is cancelled takes an image with it that has not begun.

        Args:
            detector: whose images share a batch.
            pixels: (S, S, 3), as ``Detector.place`` gives them.
            deadline: on the clock of ``time.monotonic``.

        Raises:
            DeadlineUnmet: it was not scanned, for it would have come too late.
            DeviceOutOfMemory: not even alone did it fit.
            WorkerUnavailable: it was not queued, or the worker ended before it or with it.
        """
        return await self._wait(Image(self.pace(detector), detector, pixels, deadline))

    async def run(self, function: Callable[[], Result], pace: Pace | None = None) -> Timed[Result]:
        """Queue a job and wait for its result; cancelled, it does not run if it has not begun.

        Args:
            function: the job; it may take any time.
            pace: of jobs like this one, to which its time is added.

        Raises:
            WorkerUnavailable: the job was not queued, or the worker ended before it or with it.
        """
        return await self._wait(Job(pace or Pace(), function))

    async def _wait(self, work: Work) -> Timed[Any]:
        waiter = asyncio.wrap_future(work.future)  # before it is queued: no answer finds nobody waiting
        with self._changed:
            if self._ended is not None:
                raise WorkerUnavailable(self._ended)
            self._line.add(work)
            self._changed.notify()  # the worker or, while it lets lanes take what waits, one of them
        try:
            return await waiter
        finally:
            with self._changed:
                self._line.discard(work)

    def _loop(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Do what begins next; False where the worker has ended. Between steps it holds on to no detector."""
        works: list[Work] = []
        try:
            works = self._next()
            self._do(works)
        except BaseException as error:  # a thread has nobody above it who could hear of it
            reason = self._die(error)
            for work in self._running:
                if not work.future.done():
                    work.future.set_exception(WorkerUnavailable(reason))
            return False
        finally:
            self._running = []
        return bool(works)

    def _next(self) -> list[Work]:
        """Wait for work that may begin; none when the worker is to end."""
        with self._changed:
            while self._ended is None:
                works, reason = self._line.take()
                if works:
                    self._running = list(works)
                    if reason is not None:
                        self._on_batch(len(works), reason)
                    return works
                self._changed.wait(self._line.patience_s())
            return []

    def _do(self, works: list[Work]) -> None:
        """Do the work and answer its waiters; raises what this thread cannot survive."""
        for job in works:
            if isinstance(job, Job):
                job.begun_at = time.monotonic()
                try:
                    self._answer(job, job.function())
                except BaseException as error:
                    if _is_fatal(error):
                        raise
                    job.future.set_exception(error)
        if images := [work for work in works if isinstance(work, Image)]:
            failure = self._scan(images)
            self._failures = self._failures + 1 if failure else 0
            self._last_error = failure or ""

    def _scan(self, images: list[Image]) -> str | None:
        """Scan a batch, in one pass or image by image; then each image is answered when it is done.

        Returns:
            Why no image of it could be scanned; None where one could.
        """
        lanes = torch.get_num_threads()
        if not images[0].detector.scan.abreast:
            return self._scan_at_once(images)
        if len(images) < lanes or lanes == 1:
            return _failure([self._scan_alone(image) for image in images])
        waiting, until = deque(images), time.monotonic() + _LANES_S
        return _failure([*chain(*side_by_side(lambda _: self._scan_in_turn(waiting, until), range(lanes)))])

    def _scan_in_turn(self, waiting: deque[Image], until: float) -> list[str | None]:
        """One lane: scan what waits in the batch, then in the line, image after image; tell how each of them failed."""
        failures = []
        try:
            while (image := self._following(waiting, until)) is not None:
                failures.append(self._scan_alone(image))
        except BaseException as error:  # the other lanes need not wait for this one
            self._die(error)
            raise
        return failures

    def _following(self, waiting: deque[Image], until: float) -> Image | None:
        """What a lane begins next; None where nothing is scanned any more, or it has been long."""
        with self._changed:
            while not waiting:
                if self._ended is not None or time.monotonic() > until:
                    return None
                if (image := self._line.join()) is not None:
                    self._running.append(image)
                    self._on_batch(1, Released.JOINED)
                    return image
                if not self._running:
                    return None
                self._changed.wait()
            return waiting.popleft()

    def _scan_alone(self, image: Image) -> str | None:
        failure = self._scan_at_once([image])
        with self._changed:
            self._running.remove(image)
            self._changed.notify_all()  # lanes that wait, whether anything is still scanned
        return failure

    def _scan_at_once(self, images: list[Image]) -> str | None:
        """As ``_scan``, in one pass; image by image if it fails, so that none has to answer for its neighbours."""
        begun = time.monotonic()
        for image in images:
            image.begun_at = begun
        try:
            look = images[0].detector.scan.look(np.stack([image.pixels for image in images]))
        except Exception as error:
            if _is_fatal(error):
                raise
            if out_of_memory := _is_out_of_memory(error):
                torch.cuda.empty_cache()  # nothing where there is no GPU
            if len(images) > 1:
                for image in images:
                    image.begun_at = None  # each begins anew
                return _failure([self._scan_alone(image) for image in images])
            images[0].future.set_exception(DeviceOutOfMemory(str(error)) if out_of_memory else error)
            return f"{type(error).__name__}: {error}"
        for image, *seen in zip(images, *look, strict=True):
            self._answer(image, tuple(seen), len(images) * abreast())
        return None

    def _answer(self, work: Work, value: Any, shared_by: int = 1) -> None:
        assert work.begun_at is not None
        seconds = time.monotonic() - work.begun_at
        work.pace.note(seconds / shared_by)
        work.future.set_result(Timed(value, work.begun_at - work.queued_at, seconds))

    def _die(self, error: BaseException) -> str:
        return self._end(f"the worker died of {type(error).__name__}: {error}")

    def _end(self, reason: str) -> str:
        """Take no work any more; gives why, which is the first reason there was."""
        with self._changed:
            self._ended = self._ended or reason
            self._line.clear(WorkerUnavailable(self._ended))
            self._changed.notify_all()
            return self._ended


def _failure(failures: list[str | None]) -> str | None:
    """Why no image of a batch could be scanned; None where one could."""
    return failures[-1] if all(failures) else None


def _is_out_of_memory(error: BaseException) -> bool:
    return "out of memory" in str(error).lower()


def _is_fatal(error: BaseException) -> bool:
    """Whether this thread can work no more: a CUDA error (not mere lack of memory) spoils the whole context."""
    return not isinstance(error, Exception) or ("CUDA error" in str(error) and not _is_out_of_memory(error))
