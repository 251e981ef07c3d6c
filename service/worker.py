"""The one thread that may touch torch and FAISS, and the queue before it.

FAISS on a GPU is not safe for two threads even when both only read, and two forward passes at once only fight for the
same cores; so every use of a detector, loading too, is a job of this thread.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

# Long enough for the job at hand, short enough to stop before a container runtime kills the process.
_STOP_TIMEOUT_S = 8.0


class QueueFull(Exception):
    """As many jobs wait as may; ``retry_after_s`` is when the queue should have moved on."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the queue is full; retry in {retry_after_s} s")


class WorkerUnavailable(Exception):
    """The worker is dead, hung or stopping; the message says which."""


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """A job's result, the seconds it waited and the seconds it ran."""

    value: Result
    waited_s: float
    ran_s: float


@dataclass
class _Job:
    function: Callable[[], Any]
    time_limit_s: float | None
    future: Future[Timed[Any]] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None


class Worker:
    """Runs jobs one after the other on its own thread.

    Args:
        queue_size: jobs with a time limit that may wait.
    """

    def __init__(self, queue_size: int) -> None:
        self._queue_size = queue_size
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # held where a job is put and where the thread ends, so that no job is forgotten
        self._ended: str | None = "the worker has not been started"
        self._running: _Job | None = None
        self._last_s = 0.0
        self._thread = threading.Thread(target=self._loop, name="worker", daemon=True)

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return self._queue.qsize()

    def start(self) -> None:
        """Start the thread."""
        self._ended = None
        self._thread.start()

    def stop(self) -> None:
        """Refuse the jobs that wait, finish the one that runs, end the thread."""
        self._end("the service is stopping")
        self._queue.put(None)
        self._thread.join(_STOP_TIMEOUT_S)

    def failure(self) -> str | None:
        """Why the worker cannot answer now; None where it can."""
        if self._ended is not None:
            return self._ended
        if not self._thread.is_alive():
            return "the worker's thread is gone"
        job = self._running
        if job is None or job.time_limit_s is None or job.started_at is None:
            return None
        if (elapsed := time.monotonic() - job.started_at) > job.time_limit_s:
            return f"the worker hangs: a job has been running for {elapsed:.0f} s, {job.time_limit_s:g} s are allowed"
        return None

    def check(self) -> None:
        """Raise QueueFull or WorkerUnavailable where a job with a time limit would be refused."""
        if (failure := self.failure()) is not None:
            raise WorkerUnavailable(failure)
        if self.depth >= self._queue_size:
            raise QueueFull(retry_after_s=max(1, math.ceil(self._last_s * (self.depth + 1))))

    async def run(self, function: Callable[[], Result], *, time_limit_s: float | None) -> Timed[Result]:
        """Queue a job and wait for its result; a waiter that is cancelled takes a job not yet begun with it.

        Args:
            function: the job.
            time_limit_s: after as many seconds of running it counts as hung; None for the service's own work, such as
                loading, which may take any time and is never refused for a full queue.

        Raises:
            QueueFull: the job was not queued.
            WorkerUnavailable: the job was not queued, or the worker died on it or before it.
        """
        job = _Job(function, time_limit_s)
        waiter = asyncio.wrap_future(job.future)  # before the job is queued: no answer finds nobody waiting
        with self._lock:
            if time_limit_s is not None:
                self.check()
            elif self._ended is not None:
                raise WorkerUnavailable(self._ended)
            self._queue.put(job)
        return await waiter

    def _loop(self) -> None:
        while (job := self._queue.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            job.started_at = time.monotonic()
            self._running = job
            try:
                value = job.function()
            except BaseException as error:  # a thread has nobody above it who could hear of it
                if _is_fatal(error):
                    self._end(f"the worker died of {type(error).__name__}: {error}")
                    job.future.set_exception(WorkerUnavailable(self._ended))
                    return
                job.future.set_exception(error)
            else:
                self._last_s = time.monotonic() - job.started_at
                job.future.set_result(Timed(value, job.started_at - job.queued_at, self._last_s))
            finally:
                self._running = None

    def _end(self, reason: str) -> None:
        with self._lock:
            self._ended = self._ended or reason
            while not self._queue.empty():
                job = self._queue.get_nowait()
                if job is not None and job.future.set_running_or_notify_cancel():
                    job.future.set_exception(WorkerUnavailable(self._ended))


def _is_fatal(error: BaseException) -> bool:
    """Whether this thread can work no more: a CUDA error (not mere lack of memory) spoils the whole context."""
    return not isinstance(error, Exception) or "CUDA error" in str(error)
