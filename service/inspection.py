"""The way of an admitted image through the service, whatever protocol it came by: decode, queue, score or explain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request

from models.detector import Detector
from models.explanation import Explanation, Method, explain
from models.images import ImageError, ImageTooLarge, UnsupportedImage, decode_image
from models.prediction import Prediction
from service.admission import check_turn, problems, until
from service.backlog import Backlog
from service.errors import IMAGE_TOO_LARGE, UNREADABLE_IMAGE, UNSUPPORTED_IMAGE, ProblemError
from service.pace import Pace
from service.registry import Registry, Served
from service.security import Caller
from service.settings import Settings
from service.telemetry import Telemetry
from service.worker import Worker

if TYPE_CHECKING:
    from service.drift import Drift
    from service.records.sink import Records
    from service.sinks import Sink

Result = TypeVar("Result")

Label = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A sender's id of a part or a lot."""


@dataclass(eq=False)
class Service:
    """The parts of a running service.

    Attributes:
        images: the pool that decodes, judges and draws.
        backlog: what is held in memory for requests.
        drift: the sink that watches whether inspections still are like the calibration.
        decoding: how long an image takes to be decoded and placed.
        sinks: what takes every inspection, in this order.
        records: the one that records it; None where nothing is recorded.
        stopping: whether the service was told to stop, and answers only for a little longer.
        explaining: held by the one explanation that is waited for: explanations must not keep scores waiting.
        extending: held while a version is made of another and of reviewed inspections.
    """

    settings: Settings
    telemetry: Telemetry
    worker: Worker
    registry: Registry
    backlog: Backlog
    images: ThreadPoolExecutor
    drift: Drift
    sinks: tuple[Sink, ...] = ()
    records: Records | None = None
    explaining: asyncio.Lock = field(default_factory=asyncio.Lock)
    extending: asyncio.Lock = field(default_factory=asyncio.Lock)
    decoding: Pace = field(default_factory=Pace)
    explanations: WeakKeyDictionary[Detector, Pace] = field(default_factory=WeakKeyDictionary)
    stopping: bool = False

    @property
    def waiting(self) -> int:
        """Images that wait to be decoded or scanned."""
        return self.backlog.preparing + self.worker.depth

    def explanation_pace(self, detector: Detector) -> Pace:
        """What an explanation takes."""
        return self.explanations.setdefault(detector, Pace())


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
        deadline: when its answer is of no more use, on that clock.
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
    deadline: float
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

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image as displayed, in pixels."""
        height, width = self.image.shape[:2]
        return width, height

    @property
    def milliseconds(self) -> dict[str, float]:
        """``seconds`` as they are told."""
        return {stage: round(1000 * seconds, 3) for stage, seconds in self.seconds.items()}


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


async def inspect(service: Service, submission: Submission, method: Method | None = None) -> Inspection:
    """Decode and score an image, and give the inspection to the sinks; cancelled, it is no longer scored if it waits.

    Args:
        method: to explain the score by; explanations take longer, so they are made one at a time.

    Raises:
        ProblemError: the image is not acceptable, or the service cannot score now, or not before the deadline.
    """
    seconds = dict(submission.seconds)
    with problems(service), service.backlog.holding() as hold:
        hold(len(submission.data))
        async with until(submission.deadline, submission.begun):
            if method is None:
                image, digest, prediction = await _score(service, submission, seconds)
                explanation = None
            else:
                image, digest, explanation = await _explain(service, submission, method, seconds)
                prediction = explanation.prediction
    seconds["total"] = time.monotonic() - submission.begun
    service.telemetry.observe_stages(submission.begun, seconds)
    inspection = Inspection(submission, datetime.now(UTC), image, digest, prediction, seconds, explanation)
    served = submission.served
    service.telemetry.verdicts.labels(served.category, served.version, prediction.verdict, submission.output).inc()
    for sink in service.sinks:
        await sink.take(inspection)
    return inspection


async def _score(
    service: Service, submission: Submission, seconds: dict[str, float]
) -> tuple[NDArray[np.uint8], str, Prediction]:
    detector, operation = submission.served.detector, submission.served.operation
    image, digest, placed = await _decoded(service, submission, seconds, detector.place)
    assert placed is not None
    pixels, placement = placed
    scanned = await service.worker.scan(detector, pixels, submission.deadline)
    seconds["queue"], seconds["score"] = scanned.waited_s, scanned.ran_s
    score_map, anomaly_map, summary, errors = scanned.value
    judge = partial(detector.judge, score_map, anomaly_map, placement, operation, summary, errors)
    with timed(seconds, "judge"):
        return image, digest, await in_pool(service, judge)


async def _explain(
    service: Service, submission: Submission, method: Method, seconds: dict[str, float]
) -> tuple[NDArray[np.uint8], str, Explanation]:
    detector = submission.served.detector
    image, digest, _ = await _decoded(service, submission, seconds)
    async with _turn(service):
        job = partial(explain, detector, image, method, operation=submission.served.operation)
        explained = await service.worker.run(job, service.explanation_pace(detector))
    seconds["queue"], seconds["explain"] = explained.waited_s, explained.ran_s
    return image, digest, explained.value


async def _decoded(
    service: Service,
    submission: Submission,
    seconds: dict[str, float],
    place: Callable[[NDArray[np.uint8]], Result] | None = None,
) -> tuple[NDArray[np.uint8], str, Result | None]:
    """The image of a submission, counted as held while anybody has it, its SHA-256, and what ``place`` makes of it."""

    def job() -> tuple[NDArray[np.uint8], str, Result | None]:
        begun = time.monotonic()
        with image_problems():
            image = decode_image(submission.data, max_pixels=service.settings.max_pixels)
        decoded = time.monotonic()
        seconds["decode"] = decoded - queued
        digest = sha256(submission.data).hexdigest()
        placed = None
        if place is not None:
            with timed(seconds, "place"):
                placed = place(image)
        service.decoding.note(time.monotonic() - begun)
        return image, digest, placed

    queued, backlog = time.monotonic(), service.backlog
    with backlog.preparation():
        image, digest, placed = await in_pool(service, job)
        backlog.keep(image)
    return image, digest, placed


@asynccontextmanager
async def _turn(service: Service) -> AsyncIterator[None]:
    check_turn(service)
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


@contextmanager
def image_problems() -> Iterator[None]:
    """Turn what decoding raises into the answer to a request."""
    try:
        yield
    except ImageTooLarge as error:
        raise ProblemError(IMAGE_TOO_LARGE, str(error)) from error
    except UnsupportedImage as error:
        raise ProblemError(UNSUPPORTED_IMAGE, str(error)) from error
    except ImageError as error:
        raise ProblemError(UNREADABLE_IMAGE, str(error)) from error
