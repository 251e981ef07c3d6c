"""The detectors that the service has loaded: the active version of every category in the model store."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from models.artifact import ArtifactError
from models.detector import Detector
from models.store import ModelStore, StoreError
from service.errors import CATEGORY_UNAVAILABLE, UNKNOWN_CATEGORY, ProblemError, quote
from service.telemetry import Telemetry
from service.worker import Worker

_RETRY_WHILE_LOADING_S = "5"

_log = logging.getLogger("plumbline.registry")


class CategoryState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Category:
    """A category of the store, as far as this process could load it.

    Attributes:
        version: the active one; None where there is none or it cannot be told.
        reason: why it failed.
        detector: where it is ready.
    """

    name: str
    state: CategoryState
    version: int | None = None
    reason: str | None = None
    detector: Detector | None = None


@dataclass(frozen=True)
class Served:
    """A version that is ready to score. A request holds one from its start to its end, so no answer is mixed of two."""

    category: str
    version: int
    detector: Detector


class Registry:
    """Loads detectors on the worker and hands them out.

    Args:
        store: where they are published.
        device: "auto", "cpu" or "cuda".

    Attributes:
        complete: whether ``load`` has tried every category.
    """

    def __init__(self, store: ModelStore, worker: Worker, telemetry: Telemetry, device: str) -> None:
        self._store = store
        self._worker = worker
        self._telemetry = telemetry
        self._device = device
        self._categories: dict[str, Category] = {}
        self.complete = False

    def categories(self) -> list[Category]:
        """Every category, by name."""
        return [self._categories[name] for name in sorted(self._categories)]

    def category(self, name: str) -> Category:
        """One category.

        Raises:
            ProblemError: unknown; a name is looked up, never made into a path.
        """
        if (category := self._categories.get(name)) is None:
            known = ", ".join(sorted(self._categories)) or "none: train one, then restart the service"
            raise ProblemError(UNKNOWN_CATEGORY, f"there is no category {quote(name)}; there is {known}")
        return category

    def served(self, name: str) -> Served:
        """The active version of a category that is ready.

        Raises:
            ProblemError: unknown, loading or failed.
        """
        category = self.category(name)
        if category.detector is not None and category.version is not None:
            return Served(name, category.version, category.detector)
        if category.state is CategoryState.LOADING:
            headers = {"Retry-After": _RETRY_WHILE_LOADING_S}
            raise ProblemError(CATEGORY_UNAVAILABLE, f"category {name!r} is still being loaded", headers)
        raise ProblemError(CATEGORY_UNAVAILABLE, f"category {name!r} could not be loaded: {category.reason}")

    def not_ready(self) -> str | None:
        """Why the service cannot take requests yet; None where it can."""
        if not self.complete:
            return "models are still being loaded"
        if any(category.state is CategoryState.READY for category in self._categories.values()):
            return None
        return "no model could be loaded" if self._categories else "the model store holds no category"

    def discover(self) -> None:
        """List the categories of the store, none of them loaded."""
        for name in self._store.categories():
            self._set(Category(name, CategoryState.LOADING))

    async def load(self) -> None:
        """Load what ``discover`` found, one after the other; one that fails does not stop the others."""
        for name in sorted(self._categories):
            try:
                await self._load(name)
            except (ArtifactError, StoreError) as error:
                self._fail(name, str(error))
            except Exception as error:
                self._fail(name, f"unexpected {type(error).__name__}; see the service's log", error)
        self.complete = True

    async def _load(self, name: str) -> None:
        version = self._store.active(name)
        if version is None:
            raise StoreError("no version is active; activate one")
        self._set(Category(name, CategoryState.LOADING, version))
        folder = self._store.folder(name, version)

        def load_and_warm() -> Detector:
            detector = Detector.load(folder, self._device)
            side = detector.geometry.image_size
            (prediction,) = detector.predict([np.full((side, side, 3), 127, np.uint8)])
            if not np.isfinite(prediction.image_score):
                raise ArtifactError(f"{folder} scored its warm-up image {prediction.image_score}; train it again")
            return detector

        loaded = await self._worker.run(load_and_warm, time_limit_s=None)
        self._set(Category(name, CategoryState.READY, version, detector=loaded.value))
        _log.info("model loaded", extra={"fields": {"category": name, "version": version, "s": loaded.ran_s}})

    def _fail(self, name: str, reason: str, error: Exception | None = None) -> None:
        self._set(replace(self._categories[name], state=CategoryState.FAILED, reason=reason))
        _log.error("model not loaded", extra={"fields": {"category": name, "reason": reason}}, exc_info=error)

    def _set(self, category: Category) -> None:
        self._categories[category.name] = category
        if category.version is not None:
            ready = category.state is CategoryState.READY
            self._telemetry.model.labels(category.name, category.version).set(ready)
