"""Shadows: versions that score what the active one has scored, after it, only to be compared."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self
from uuid import uuid4

from service.errors import ProblemError
from service.inspection import Inspection
from service.registry import Registry, Served
from service.sinks import Sink
from service.telemetry import Telemetry
from service.worker import Worker, WorkerUnavailable

# Decoded images are large, and one that must wait for long comes at a time when the next would have to wait too.
_MOST_WAITING = 4
_PATIENCE_S = 5.0
_LOOK_S = 0.01

_log = logging.getLogger("plumbline.shadow")


class Shadows:
    """The sink that lets a category's shadow score the images of its active version, whenever the worker is idle.

    What it makes of an image is told as metrics and recorded; an image is dropped, and counted, where there is no time.

    Args:
        record: what takes the shadows' inspections; None to record none.
    """

    def __init__(self, registry: Registry, worker: Worker, telemetry: Telemetry, record: Sink | None) -> None:
        self._registry = registry
        self._worker = worker
        self._telemetry = telemetry
        self._record = record
        self._waiting: asyncio.Queue[tuple[Inspection, Served]] = asyncio.Queue(_MOST_WAITING)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def take(self, inspection: Inspection) -> None:
        """See ``Sink``."""
        if (shadow := self._registry.shadow_of(inspection.served)) is None:
            return
        try:
            self._waiting.put_nowait((inspection, shadow))
        except asyncio.QueueFull:
            self._drop(shadow)

    async def _run(self) -> None:
        while True:
            await self._score(*await self._waiting.get())  # unnamed: nothing of the last one is held while none comes

    async def _score(self, inspection: Inspection, shadow: Served) -> None:
        if not await self._is_idle():
            self._drop(shadow)
            return
        try:
            await self._compare(inspection, shadow)
        except (ProblemError, WorkerUnavailable) as error:
            self._drop(shadow)
            _log.warning("shadow not recorded", extra={"fields": {"id": inspection.id, "reason": str(error)}})
        except Exception:
            self._drop(shadow)
            _log.exception("a shadow failed", extra={"fields": {"id": inspection.id}})

    async def _is_idle(self) -> bool:
        """Wait until nothing waits for the worker; False where that takes too long."""
        deadline = asyncio.get_running_loop().time() + _PATIENCE_S
        while self._worker.depth > 0:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def _compare(self, inspection: Inspection, shadow: Served) -> None:
        begun = asyncio.get_running_loop().time()
        done = await self._worker.run(lambda: shadow.detector.predict([inspection.image], shadow.operation))
        (prediction,) = done.value
        answered, labels = inspection.prediction, (shadow.category, shadow.version)
        self._telemetry.shadow_verdicts.labels(*labels, prediction.verdict, answered.verdict).inc()
        self._telemetry.shadow_scores.labels(*labels).observe(prediction.image_score - answered.image_score)
        self._telemetry.shadow_p_values.labels(*labels).observe(prediction.p_value - answered.p_value)
        if self._record is not None:
            total = asyncio.get_running_loop().time() - begun
            seconds = {"queue": done.waited_s, "score": done.ran_s, "total": total}
            own = replace(
                inspection,
                submission=replace(inspection.submission, id=uuid4(), served=shadow),
                time=datetime.now(UTC),
                prediction=prediction,
                seconds=seconds,
                explanation=None,
                shadow_of=inspection.id,
            )
            await self._record.take(own)

    def _drop(self, shadow: Served) -> None:
        self._telemetry.shadow_dropped.labels(shadow.category).inc()
