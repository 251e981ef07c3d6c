"""The way of one image through the service, whatever protocol it came by: admit, decode, queue, score or explain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from models.explanation import Explanation, Method, NotExplainable, check_explainable, explain
from models.images import ImageError, ImageTooLarge, UnsupportedImage, decode_image
from models.prediction import Prediction
from service.errors import (
    IMAGE_TOO_LARGE,
    NOT_EXPLAINABLE,
    QUEUE_FULL,
    SCORE_TIMEOUT,
    UNREADABLE_IMAGE,
    UNSUPPORTED_IMAGE,
    WORKER_UNAVAILABLE,
    ProblemError,
)
from service.registry import Registry, Served
from service.security import Caller
from service.settings import Settings
from service.telemetry import Telemetry
from service.worker import QueueFull, Timed, Worker, WorkerUnavailable

if TYPE_CHECKING:
    from service.drift import Drift
    from service.records.sink import Records
    from service.sinks import Sink

Result = TypeVar("Result")

_RETRY_AFTER_TIMEOUT_S = "10"
_RETRY_AFTER_EXPLANATION_S = "5"


@dataclass(frozen=True)
class Service:
    """The parts of a running service.

    Attributes:
        images: the pool that decodes and draws.
        drift: the sink that watches whether inspections still are like the calibration.
        sinks: what takes every inspection, in this order.
        records: the one that records it; None where nothing is recorded.
        explaining: held by the one explanation that is waited for: explanations must not keep scores waiting.
    """

    settings: Settings
    telemetry: Telemetry
    worker: Worker
    registry: Registry
    images: ThreadPoolExecutor
    drift: Drift
    sinks: tuple[Sink, ...] = ()
    records: Records | None = None
    explaining: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class Submission:
    """An image that came in.

    Attributes:
        id: of the request, and of the inspection that it becomes.
        served: the version that scores it, as ``admit`` gave it.
        data: the image file.
        caller: who sent it.
        protocol: by which API it came.
        output: what was asked for: score, heatmap or explain.
        seconds: by stage, what was spent before.
        begun: when the request arrived, on the clock of ``time.monotonic``.
        part: the sender's id of the part; None if not given.
        lot: the sender's id of the lot; None if not given.
    """

    id: UUID
    served: Served
    data: bytes
    caller: Caller
    protocol: str
    output: str
    begun: float
    seconds: dict[str, float] = field(default_factory=dict)
    part: str | None = None
    lot: str | None = None


@dataclass(frozen=True)
class Inspection:
    """One scored image.

    Attributes:
        time: when it was scored, UTC.
        image: (H, W, 3) uint8 RGB, the original as displayed.
        image_sha256: of the image file, in hexadecimal.
        seconds: by stage; ``total`` is from the request's arrival to the score.
        explanation: of its score, if asked for.
        shadow_of: the inspection that was answered, where this one was made beside it by a shadow, for the record.
    """

    submission: Submission
    time: datetime
    image: NDArray[np.uint8]
    image_sha256: str
    prediction: Prediction
    seconds: dict[str, float]
    explanation: Explanation | None = None
    shadow_of: UUID | None = None

    @property
    def id(self) -> UUID:
        return self.submission.id

    @property
    def served(self) -> Served:
        return self.submission.served


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


async def admit(service: Service, category: str, version: int | None = None, *, explained: bool = False) -> Served:
    """The version that will score an image, before its bytes are read: refusing must cost less than scoring.

    Args:
        version: None for the active one; another one is loaded if it is not in memory.
        explained: whether the score will have to be explained.

    Raises:
        ProblemError: there is no such category or version, or the service cannot score, or explain, now.
    """
    with _worker_problems(service.settings):
        async with asyncio.timeout(service.settings.request_timeout_s):
            served = await service.registry.served(category, version)
    if explained:
        try:
            check_explainable(served.detector)
        except NotExplainable as error:
            raise ProblemError(NOT_EXPLAINABLE, str(error)) from error
        _check_turn(service)
    with _worker_problems(service.settings):
        service.worker.check()
    return served


async def inspect(service: Service, submission: Submission, method: Method | None = None) -> Inspection:
    """Decode and score an image, and give the inspection to the sinks; cancelled, it is no longer scored if it waits.

    Args:
        method: to explain the score by; explanations take longer, so they are made one at a time.

    Raises:
        ProblemError: the image is not acceptable, or the service cannot score now.
    """
    settings, detector, seconds = service.settings, submission.served.detector, dict(submission.seconds)

    def job(image: NDArray[np.uint8]) -> tuple[Prediction, Explanation | None]:
        if method is None:
            return detector.predict([image])[0], None
        explanation = explain(detector, image, method)
        return explanation.prediction, explanation

    with timed(seconds, "decode"):
        image = await in_pool(service, partial(_decode, submission.data, settings.max_pixels))
    digest = in_pool(service, lambda: sha256(submission.data).hexdigest())  # while the worker scores
    async with nullcontext() if method is None else _turn(service):
        with _worker_problems(settings):
            done = await _on_worker(service, partial(job, image))
    seconds["queue"], seconds["score" if method is None else "explain"] = done.waited_s, done.ran_s
    seconds["total"] = time.monotonic() - submission.begun
    for name, value in seconds.items():
        service.telemetry.stages.labels(name).observe(value)
    prediction, explanation = done.value
    inspection = Inspection(submission, datetime.now(UTC), image, await digest, prediction, seconds, explanation)
    served = submission.served
    service.telemetry.verdicts.labels(served.category, served.version, prediction.verdict, submission.output).inc()
    for sink in service.sinks:
        await sink.take(inspection)
    return inspection


def _check_turn(service: Service) -> None:
    if service.explaining.locked():
        detail = "another image is being explained, and only one is at a time; retry when it is done"
        raise ProblemError(QUEUE_FULL, detail, {"Retry-After": _RETRY_AFTER_EXPLANATION_S})


@asynccontextmanager
async def _turn(service: Service) -> AsyncIterator[None]:
    _check_turn(service)
    async with service.explaining:
        yield


def in_pool(service: Service, function: Callable[[], Result]) -> asyncio.Future[Result]:
    """Run what would block the event loop, on the threads that decode and draw."""
    return asyncio.get_running_loop().run_in_executor(service.images, function)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long the block took."""
    begun = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - begun


def _decode(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    try:
        return decode_image(data, max_pixels=max_pixels)
    except ImageTooLarge as error:
        raise ProblemError(IMAGE_TOO_LARGE, str(error)) from error
    except UnsupportedImage as error:
        raise ProblemError(UNSUPPORTED_IMAGE, str(error)) from error
    except ImageError as error:
        raise ProblemError(UNREADABLE_IMAGE, str(error)) from error


async def _on_worker(service: Service, job: Callable[[], Result]) -> Timed[Result]:
    limit = service.settings.request_timeout_s
    async with asyncio.timeout(limit):
        return await service.worker.run(job, time_limit_s=limit)


@contextmanager
def _worker_problems(settings: Settings) -> Iterator[None]:
    try:
        yield
    except QueueFull as error:
        detail = f"{settings.queue_size} images are waiting, no more may; retry in {error.retry_after_s} s"
        raise ProblemError(QUEUE_FULL, detail, {"Retry-After": str(error.retry_after_s)}) from error
    except WorkerUnavailable as error:
        raise ProblemError(WORKER_UNAVAILABLE, f"{error}; restart the service if it does not by itself") from error
    except TimeoutError as error:
        detail = f"no score came within {settings.request_timeout_s:g} s; retry when fewer images are waiting"
        raise ProblemError(SCORE_TIMEOUT, detail, {"Retry-After": _RETRY_AFTER_TIMEOUT_S}) from error
