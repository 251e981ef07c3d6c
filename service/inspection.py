"""The way of one image through the service: upload, decode, queue, score or explain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from models.detector import Detector
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
from service.registry import Registry
from service.settings import Settings
from service.telemetry import Telemetry
from service.uploads import read_upload
from service.worker import QueueFull, Timed, Worker, WorkerUnavailable

Result = TypeVar("Result")

_RETRY_AFTER_TIMEOUT_S = "10"
_RETRY_AFTER_EXPLANATION_S = "5"


@dataclass(frozen=True)
class Service:
    """The parts of a running service.

    Attributes:
        images: the pool that decodes and draws.
        explaining: held by the one explanation that is waited for: explanations must not keep scores waiting.
    """

    settings: Settings
    telemetry: Telemetry
    worker: Worker
    registry: Registry
    images: ThreadPoolExecutor
    explaining: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class Inspection:
    """One scored image.

    Attributes:
        detector: what scored it.
        image: (H, W, 3) uint8 RGB, the original as displayed.
        seconds: by stage.
        explanation: of its score, if asked for.
    """

    id: UUID
    detector: Detector
    image: NDArray[np.uint8]
    prediction: Prediction
    seconds: dict[str, float]
    explanation: Explanation | None = None


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


async def inspect(request: Request, category: str) -> Inspection:
    """Read, decode and score the image of a request.

    Raises:
        ProblemError: the request or its image is not acceptable, or the service cannot score now.
        ClientDisconnect: the client left; its image is no longer scored if that had not begun.
    """
    detector = _detector(request, category)
    return await _inspect(request, detector, "score", lambda image: (detector.predict([image])[0], None), nullcontext())


async def explain_inspection(request: Request, category: str, method: Method) -> Inspection:
    """The same, with an explanation; one at a time.

    Raises:
        ProblemError: as ``inspect``; the category's score cannot be explained, or another explanation is under way.
        ClientDisconnect: as ``inspect``.
    """
    service = service_of(request)
    detector = _detector(request, category)
    try:
        check_explainable(detector)
    except NotExplainable as error:
        raise ProblemError(NOT_EXPLAINABLE, str(error)) from error

    def job(image: NDArray[np.uint8]) -> tuple[Prediction, Explanation]:
        explanation = explain(detector, image, method)
        return explanation.prediction, explanation

    _check_turn(service)  # before the body is read, and after it
    return await _inspect(request, detector, "explain", job, _turn(service))


def _check_turn(service: Service) -> None:
    if service.explaining.locked():
        detail = "another image is being explained, and only one is at a time; retry when it is done"
        raise ProblemError(QUEUE_FULL, detail, {"Retry-After": _RETRY_AFTER_EXPLANATION_S})


@asynccontextmanager
async def _turn(service: Service) -> AsyncIterator[None]:
    _check_turn(service)
    async with service.explaining:
        yield


def _detector(request: Request, category: str) -> Detector:
    service = service_of(request)
    detector = service.registry.detector(category)
    request.state.log.update(category=category, version=detector.version)
    with _worker_problems(service.settings):
        service.worker.check()  # before the body is read: refusing must cost less than scoring
    return detector


async def _inspect(
    request: Request,
    detector: Detector,
    stage: str,
    job: Callable[[NDArray[np.uint8]], tuple[Prediction, Explanation | None]],
    turn: AbstractAsyncContextManager[None],
) -> Inspection:
    service, settings = service_of(request), service_of(request).settings
    seconds: dict[str, float] = {}
    with timed(seconds, "total"):
        with timed(seconds, "upload"):
            data = await read_upload(request, max_bytes=settings.max_upload_bytes, timeout_s=settings.request_timeout_s)
        with timed(seconds, "decode"):
            image = await in_pool(service, partial(_decode, data, settings.max_pixels))
        async with turn:
            with _worker_problems(settings):
                done = await _unless_client_leaves(request, _on_worker(service, partial(job, image)))
    seconds["queue"], seconds[stage] = done.waited_s, done.ran_s
    for name, value in seconds.items():
        service.telemetry.stages.labels(name).observe(value)
    prediction, explanation = done.value
    request.state.log.update(verdict=prediction.verdict, image_score=prediction.image_score)
    return Inspection(request.state.id, detector, image, prediction, seconds, explanation)


async def in_pool(service: Service, function: Callable[[], Result]) -> Result:
    """Run what would block the event loop, on the threads that decode and draw."""
    return await asyncio.get_running_loop().run_in_executor(service.images, function)


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


async def _unless_client_leaves(request: Request, coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Await a coroutine, or cancel it when the client closes the connection; the body must have been read."""
    work = asyncio.create_task(coroutine)
    departure = asyncio.create_task(_departure(request))
    try:
        await asyncio.wait((work, departure), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        departure.cancel()


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
