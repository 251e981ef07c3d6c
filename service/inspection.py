"""The way of one image through the service: upload, decode, queue, score."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from models.detector import Detector
from models.images import ImageError, ImageTooLarge, UnsupportedImage, decode_image
from models.prediction import Prediction
from service.errors import (
    IMAGE_TOO_LARGE,
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


@dataclass(frozen=True)
class Service:
    """The parts of a running service; ``images`` is the pool that decodes and draws."""

    settings: Settings
    telemetry: Telemetry
    worker: Worker
    registry: Registry
    images: ThreadPoolExecutor


@dataclass(frozen=True)
class Inspection:
    """One scored image.

    Attributes:
        detector: what scored it.
        image: (H, W, 3) uint8 RGB, the original as displayed.
        seconds: by stage.
    """

    id: UUID
    detector: Detector
    image: NDArray[np.uint8]
    prediction: Prediction
    seconds: dict[str, float]


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
    service, settings = service_of(request), service_of(request).settings
    detector = service.registry.detector(category)
    request.state.log.update(category=category, version=detector.version)
    with _worker_problems(settings):
        service.worker.check()  # before the body is read: refusing must cost less than scoring
    seconds: dict[str, float] = {}
    with timed(seconds, "total"):
        with timed(seconds, "upload"):
            data = await read_upload(request, max_bytes=settings.max_upload_bytes, timeout_s=settings.request_timeout_s)
        with timed(seconds, "decode"):
            image = await in_pool(service, partial(_decode, data, settings.max_pixels))
        with _worker_problems(settings):
            scored = await _unless_client_leaves(request, _score(service, detector, image))
    seconds["queue"], seconds["score"] = scored.waited_s, scored.ran_s
    for stage, value in seconds.items():
        service.telemetry.stages.labels(stage).observe(value)
    prediction = scored.value
    request.state.log.update(verdict=prediction.verdict, image_score=prediction.image_score)
    return Inspection(request.state.id, detector, image, prediction, seconds)


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


async def _score(service: Service, detector: Detector, image: NDArray[np.uint8]) -> Timed[Prediction]:
    limit = service.settings.request_timeout_s
    async with asyncio.timeout(limit):
        return await service.worker.run(lambda: detector.predict([image])[0], time_limit_s=limit)


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
