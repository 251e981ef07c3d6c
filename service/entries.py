"""What the service knows of each category: the version that is served, its shadow, and what is wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from service.loader import Key, Served
from service.telemetry import Telemetry

_log = logging.getLogger("plumbline.registry")


class CategoryState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass
class Entry:
    """A category; the versions that it names as served or shadow are in memory.

    Attributes:
        version: the one that is served, or, where the category is not ready, that is to be.
        incoming: the one that is loaded, or being loaded, to become the version or the shadow.
        problem: why what the store says of the version is not what is served.
        shadow_problem: why what the store says of the shadow is not so.
        operation_problem: why what is recorded of a version's operation is not in force.
        changing: held while any of this changes.
    """

    name: str
    state: CategoryState = CategoryState.LOADING
    version: int | None = None
    shadow: int | None = None
    incoming: int | None = None
    problem: str | None = None
    shadow_problem: str | None = None
    operation_problem: str | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def served(self) -> int | None:
        """The version that is served; None where none is."""
        return self.version if self.state is CategoryState.READY else None

    @property
    def problems(self) -> list[str]:
        """All that is wrong."""
        return [text for text in (self.problem, self.shadow_problem, self.operation_problem) if text is not None]

    @contextmanager
    def arriving(self, version: int | None) -> Iterator[None]:
        """Keep a version in memory until it is served or the shadow."""
        self.incoming = version
        try:
            yield
        finally:
            self.incoming = None


class Entries(dict[str, Entry]):
    """The categories by name."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def pinned(self) -> set[Key]:
        """The versions that must stay in memory."""
        return {
            (entry.name, version)
            for entry in self.values()
            for version in (entry.served, entry.shadow, entry.incoming)
            if version is not None
        }

    def serve(self, entry: Entry, served: Served, before: Served | None) -> None:
        """The swap: from here on requests are given this version, which is in memory.

        Args:
            before: the one in whose place it comes.
        """
        version = served.version
        fields = {"category": entry.name, "version": version, "before": entry.served}
        if entry.served != version or entry.problem is not None:
            if entry.served not in (None, version):
                self._telemetry.model_swaps.labels(entry.name).inc()
            _log.info("model active", extra={"fields": fields})
        if before is not None and before.version != version:
            regions = [one.operation.region_of_interest for one in (before, served)]
            if regions[0] != regions[1]:  # each version has its own, and a mask that was set for the camera is not here
                _log.warning("the region of interest is another one with this version", extra={"fields": fields})
        entry.version, entry.state, entry.problem = version, CategoryState.READY, None
        if entry.shadow == version:
            entry.shadow = None

    def tell(self, entry: Entry) -> None:
        """Show whether something is wrong, as a metric."""
        if entry.name in self:
            self._telemetry.model_problem.labels(entry.name).set(bool(entry.problems))

    def forget(self, entry: Entry) -> None:
        """The category is gone."""
        del self[entry.name]
        self._telemetry.model_problem.remove(entry.name)
        _log.warning("category gone", extra={"fields": {"category": entry.name}})
