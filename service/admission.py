"""Whether an image is taken in: refused before its bytes are read where it could not be scored, or not in time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from models.detector import Detector
from models.explanation import NotExplainable, check_explainable
from service.backlog import TooMuchHeld
from service.errors import (
    DEADLINE_EXCEEDED,
    DEADLINE_TOO_SHORT,
    DEVICE_OUT_OF_MEMORY,
    IMAGE_TOO_LARGE,
    NOT_EXPLAINABLE,
    QUEUE_FULL,
    RECORDS_UNAVAILABLE,
    UNREADABLE_IMAGE,
    UNSUPPORTED_IMAGE,
    WORKER_UNAVAILABLE,
    ProblemError,
)
from service.line import DeadlineUnmet
from service.pace import Pace
from service.registry import SERVED_PROBLEMS, Served
from service.worker import DeviceOutOfMemory, WorkerUnavailable

if TYPE_CHECKING:
    from service.inspection import Service

INSPECTION_PROBLEMS = (
    *SERVED_PROBLEMS,
    IMAGE_TOO_LARGE,
    UNSUPPORTED_IMAGE,
    UNREADABLE_IMAGE,
    QUEUE_FULL,
    RECORDS_UNAVAILABLE,
    DEVICE_OUT_OF_MEMORY,
    DEADLINE_TOO_SHORT,
    DEADLINE_EXCEEDED,
)
"""What ``admit`` and ``inspect`` may refuse an image for, whatever protocol it came by."""

_RETRY_AFTER_MEMORY_S = "5"
_RETRY_AFTER_EXPLANATION_S = "5"


async def admit(
    service: Service, category: str, version: int | None = None, *, deadline: float, explained: bool = False
) -> Served:
    """The version that will score an image, before its bytes are read: refusing must cost less than scoring.

    Args:
        version: None for the active one; another one is loaded if it is not in memory.
        deadline: when the answer is of no more use, on the clock of ``time.monotonic``.
        explained: whether the score will have to be explained.

    Raises:
        ProblemError: there is no such category or version, or the service cannot score, or explain, now or in time.
    """
    with problems(service):
        async with until(deadline, time.monotonic()):
            served = await service.registry.served(category, version)
    detector = served.detector
    if explained:
        try:
            check_explainable(detector)
        except NotExplainable as error:
            raise ProblemError(NOT_EXPLAINABLE, str(error)) from error
        check_turn(service)
    with problems(service):
        if (unavailable := service.worker.unavailable()) is not None:
            raise WorkerUnavailable(unavailable)
        service.backlog.check()
    if service.records is not None:
        service.records.check()
    if (waiting := service.waiting) >= service.settings.queue_size:
        raise queue_full(service, f"{waiting} images are waiting, no more may")
    _check_time(service, detector, deadline, service.explanation_pace(detector) if explained else None)
    return served


@contextmanager
def held(service: Service, size: int) -> Iterator[None]:
    """Count the bytes of images that wait for their turn, while the block lasts.

    Raises:
        ProblemError: too much is held already.
    """
    with problems(service), service.backlog.holding() as hold:
        if size > 0:
            hold(size)
        yield


def queue_full(service: Service, reason: str) -> ProblemError:
    """The refusal of an image that finds too much waiting, with the time in which that should be done."""
    retry_after_s = max(1, math.ceil(service.worker.wait_s()))
    detail = f"{reason}; retry in {retry_after_s} s"
    return ProblemError(QUEUE_FULL, detail, {"Retry-After": str(retry_after_s)})


def check_turn(service: Service) -> None:
    """Refuse an explanation while another one is made."""
    if service.explaining.locked():
        detail = "another image is being explained, and only one is at a time; retry when it is done"
        raise ProblemError(QUEUE_FULL, detail, {"Retry-After": _RETRY_AFTER_EXPLANATION_S})


@asynccontextmanager
async def until(deadline: float, begun: float) -> AsyncIterator[None]:
    """Give the block up at the deadline of a request that arrived when it had ``begun``."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except (TimeoutError, DeadlineUnmet) as error:
        allowed = deadline - begun
        detail = f"no answer within {allowed:.3g} s; allow more by the header X-Request-Timeout, or send fewer images"
        raise ProblemError(DEADLINE_EXCEEDED, detail) from error


@contextmanager
def problems(service: Service) -> Iterator[None]:
    """Turn what the parts of the service raise into the answer to a request."""
    try:
        yield
    except TooMuchHeld as error:
        raise queue_full(service, str(error)) from error
    except DeviceOutOfMemory as error:
        detail = "the device's memory has no room for this image now; retry, or give the service a larger device"
        raise ProblemError(DEVICE_OUT_OF_MEMORY, detail, {"Retry-After": _RETRY_AFTER_MEMORY_S}) from error
    except WorkerUnavailable as error:
        raise ProblemError(WORKER_UNAVAILABLE, f"{error}; restart the service if it does not by itself") from error


def _check_time(service: Service, detector: Detector, deadline: float, explanation: Pace | None) -> None:
    """Refuse an image that could not be answered in time, by the pace of late."""
    pace = explanation or service.worker.pace(detector)
    ahead = service.backlog.preparing
    rounds = 1 + ahead / service.settings.image_threads
    waiting_s = service.worker.wait_s() + ahead * service.worker.pace(detector).typical_s
    # Where nothing waits, the fastest time counts: what may be possible is tried.
    needed_s = waiting_s + rounds * service.decoding.typical_s + pace.typical_s if waiting_s else pace.fastest_s
    if (left_s := deadline - time.monotonic()) >= needed_s:
        return
    retry_after_s = max(1, math.ceil(waiting_s))
    detail = (
        f"an answer would take about {needed_s:.3g} s, and {max(0.0, left_s):.3g} s are left until the deadline; "
        f"retry in {retry_after_s} s, or allow more by the header X-Request-Timeout"
    )
    raise ProblemError(DEADLINE_TOO_SHORT, detail, {"Retry-After": str(retry_after_s)})
