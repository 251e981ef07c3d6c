"""Publishing: the sink that tells every result to the receivers that want it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from types import TracebackType
from typing import Self

from pydantic import Field

from service.answers import Score, score_of
from service.inspection import Inspection
from service.publishing.mqtt import MqttOutlet
from service.publishing.outbox import Message
from service.publishing.outlet import Outlet, log
from service.publishing.webhook import WebhookOutlet
from service.settings import Settings
from service.telemetry import Telemetry

# To deliver what waits when the service stops; an orchestrator does not wait for ever either.
_FINISH_S = 5.0


class Result(Score):
    """What is told of an inspection: the answer to its request, and what was said of the image."""

    time: datetime = Field(description="when it was scored, UTC")
    part: str | None = Field(default=None, description="the sender's id of the part")
    lot: str | None = Field(default=None, description="the sender's id of the lot")


class Publishing:
    """Hands results to the receivers' outboxes; each receiver has a task of its own."""

    def __init__(self, outlets: tuple[Outlet, ...]) -> None:
        self._outlets = outlets
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(outlet.run(), name=outlet.name) for outlet in self._outlets]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        drained = [asyncio.create_task(outlet.outbox.drained()) for outlet in self._outlets]
        _, late = await asyncio.wait(drained, timeout=_FINISH_S)
        for task in (*late, *self._tasks):
            task.cancel()
        await asyncio.gather(*late, *self._tasks, return_exceptions=True)
        for outlet in self._outlets:
            if len(outlet.outbox):
                log.error("results not told", extra={"fields": {"to": outlet.name, "results": len(outlet.outbox)}})

    async def take(self, inspection: Inspection) -> None:
        """Queue the result of an inspection."""
        told = [outlet for outlet in self._outlets if outlet.wants(inspection.prediction.verdict)]
        if told:
            message = message_of(inspection)
            for outlet in told:
                outlet.outbox.put(message)


def message_of(inspection: Inspection) -> Message:
    """What is told of an inspection."""
    submission, score = inspection.submission, score_of(inspection)
    result = Result(
        **{name: getattr(score, name) for name in Score.model_fields},
        time=inspection.time,
        part=submission.part,
        lot=submission.lot,
    )
    payload = result.model_dump_json(exclude_none=True).encode()
    return Message(inspection.id, inspection.served.category, inspection.prediction.verdict, payload)


def open_publishing(settings: Settings, telemetry: Telemetry) -> Publishing | None:
    """What tells the results of a service; None where nobody is to be told.

    Raises:
        SettingsError: a receiver cannot be used as it is set.
    """
    outlets: list[Outlet] = []
    if settings.mqtt_url is not None:
        outlets.append(MqttOutlet(settings, telemetry))
    for number, webhook in enumerate(settings.webhooks, 1):
        outlets.append(WebhookOutlet(f"webhook-{number}", webhook, settings, telemetry))
    return Publishing(tuple(outlets)) if outlets else None
