"""A receiver of results."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

from models.prediction import Verdict
from service.publishing.outbox import Outbox
from service.settings import Settings
from service.telemetry import Telemetry

log = logging.getLogger("plumbline.publishing")


class Outlet(ABC):
    """A receiver of results, and what waits for it.

    Args:
        name: of the receiver, in metrics and logs.
    """

    def __init__(self, name: str, settings: Settings, telemetry: Telemetry) -> None:
        self.name = name
        self._counter = telemetry.published
        for alerted in ("refused", "lost"):  # Prometheus sees no rise in a counter that appears with its first event
            self._counter.labels(name, alerted)
        self.outbox = Outbox(settings.outbox_bytes, lambda: self.count("lost"))
        telemetry.outbox_depth.labels(name).set_function(lambda: len(self.outbox))

    def wants(self, verdict: Verdict) -> bool:
        """Whether the receiver is to be told of results with this verdict."""
        return True

    @abstractmethod
    async def run(self) -> None:
        """Deliver messages until cancelled; no failure ends it."""

    def count(self, outcome: str) -> None:
        """Count what became of a message: delivered, retried, refused (given up) or lost (no room)."""
        self._counter.labels(self.name, outcome).inc()
