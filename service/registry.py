"""The categories of the model store and the version of each that is served; follows the store while it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ValidationError

from models.activations import Activation
from models.artifact import ArtifactError
from models.detector import Detector
from models.operation import Operation, Operations, UnknownOperation
from models.store import ModelStore
from models.store_errors import StoreError, StoreReadOnly, UnknownCategory, UnknownVersion
from models.store_files import NUMBER
from service.entries import CategoryState, Entries, Entry
from service.errors import (
    CATEGORY_UNAVAILABLE,
    INVALID_REQUEST,
    MODEL_MEMORY,
    NO_EARLIER_VERSION,
    STORE_READ_ONLY,
    STORE_UNAVAILABLE,
    UNKNOWN_CATEGORY,
    UNKNOWN_OPERATION,
    UNKNOWN_VERSION,
    VERSION_IN_USE,
    VERSION_UNAVAILABLE,
    WORKER_UNAVAILABLE,
    ProblemError,
    quote,
)
from service.following import Follower
from service.loader import BudgetError, Loader, LoadError, Served
from service.settings import Settings
from service.telemetry import Telemetry
from service.version_facts import VersionFacts, read_versions, version_facts
from service.worker import Worker, WorkerUnavailable

__all__ = [
    "SERVED_PROBLEMS",
    "Category",
    "CategoryState",
    "Registry",
    "Served",
    "version_number",
]

SERVED_PROBLEMS = (
    UNKNOWN_CATEGORY,
    UNKNOWN_VERSION,
    VERSION_UNAVAILABLE,
    MODEL_MEMORY,
    CATEGORY_UNAVAILABLE,
    STORE_UNAVAILABLE,
    WORKER_UNAVAILABLE,
)
"""What ``Registry.served`` may answer with."""

_RETRY_WHILE_LOADING_S = "5"


@dataclass(frozen=True)
class Category:
    """A category of the store, as this process serves it.

    Attributes:
        version: the one that is served; where none is, the one that could not be loaded, if that is known.
        reason: why what the store says of the category is not what is served; None where it is.
        served: where it is ready.
        shadow: the version that scores beside it.
    """

    name: str
    state: CategoryState
    version: int | None = None
    reason: str | None = None
    served: Served | None = None
    shadow: Served | None = None


class Registry:
    """Hands out the versions that score, and changes them while requests go on.

    All of it runs on the event loop. A swap is one assignment there: a request has the old version or the new.

    Args:
        store: where versions are published.
    """

    def __init__(self, store: ModelStore, worker: Worker, telemetry: Telemetry, settings: Settings) -> None:
        self._store = store
        self._entries = Entries(telemetry)
        self.loader = Loader(store, worker, telemetry, settings, self._entries.pinned)
        self._follower = Follower(store, self.loader, self._entries, telemetry, settings.store_poll_s)

    @property
    def complete(self) -> bool:
        """Whether every category that there was at the start has been tried."""
        return self._follower.complete

    @property
    def store_problem(self) -> str | None:
        """Why the store cannot be followed now; None where it can."""
        return self._follower.problem

    def categories(self) -> list[Category]:
        """Every category, by name."""
        return [self.category(name) for name in sorted(self._entries)]

    def category(self, name: str) -> Category:
        """One category.

        Raises:
            ProblemError: unknown; a name is looked up, never made into a path.
        """
        entry = self._entry(name)
        reason = "; ".join(entry.problems) or None
        served, shadow = self.loader.in_memory(name, entry.served), self.loader.in_memory(name, entry.shadow)
        return Category(name, entry.state, entry.version, reason, served, shadow)

    async def served(self, name: str, version: int | None = None) -> Served:
        """What scores an image: the active version, or the one asked for, loaded if it is not in memory.

        Raises:
            ProblemError: one of SERVED_PROBLEMS.
        """
        entry = self._entry(name)
        if version is None or version == entry.served:
            return self.active(name)
        return self.loader.use(name, version) or await self.load(name, version)

    def active(self, name: str) -> Served:
        """The active version of a category, or the one that goes on serving in its place.

        Raises:
            ProblemError: unknown, loading or failed.
        """
        entry = self._entry(name)
        if entry.served is not None and (served := self.loader.use(name, entry.served)) is not None:
            return served
        if entry.state is CategoryState.LOADING:
            headers = {"Retry-After": _RETRY_WHILE_LOADING_S}
            raise ProblemError(CATEGORY_UNAVAILABLE, f"category {name!r} is still being loaded", headers)
        raise ProblemError(CATEGORY_UNAVAILABLE, f"category {name!r} could not be loaded: {entry.problem}")

    def shadow_of(self, served: Served) -> Served | None:
        """The shadow of a version; None where there is none, or the version is not the active one."""
        entry = self._entries.get(served.category)
        if entry is None or entry.shadow is None or served.version != entry.served:
            return None
        return self.loader.use(entry.name, entry.shadow)

    async def load(self, name: str, version: int) -> Served:
        """Load a version into memory, if it is not there, to score with when it is asked for by its number.

        Raises:
            ProblemError: unknown, damaged, or without a place in memory.
        """
        self._entry(name)
        with _problems(name, version):
            return await self.loader.load(name, version)

    def unload(self, name: str, version: int | None = None) -> None:
        """Take a version out of memory, or all of a category that are neither active nor the shadow.

        Raises:
            ProblemError: unknown, or the version is active or the shadow.
        """
        self._entry(name)
        pinned = self._entries.pinned()
        if version is not None and (name, version) in pinned:
            raise ProblemError(
                VERSION_IN_USE,
                f"version {version} of {name!r} is active or the shadow; activate another one first, or end the shadow",
            )
        for loaded in self.loader.versions(name) if version is None else (version,):
            if (name, loaded) not in pinned:
                self.loader.unload(name, loaded)

    async def activate(self, name: str, version: int, author: str) -> None:
        """Load a version, then make it the active one, in the store too; if that fails all is as it was.

        Raises:
            ProblemError: unknown, not to be loaded, or the store may not be written to.
        """
        await self._activate(self._entry(name), version, author)

    async def rollback(self, name: str, author: str) -> int:
        """As ``activate``, of the version that was active before; gives its number."""
        entry = self._entry(name)
        with _problems(name):
            version = await asyncio.to_thread(self._store.previous, name)
        if version is None:
            raise ProblemError(NO_EARLIER_VERSION, f"no other version of {name!r} was active before the present one")
        await self._activate(entry, version, author, rollback=True)
        return version

    async def check_writable(self, name: str) -> None:
        """See that a version may be added, before work is spent on it.

        Raises:
            ProblemError: it may not.
        """
        self._entry(name)
        with _problems(name):
            await asyncio.to_thread(self._store.check_writable, name)

    async def publish(self, detector: Detector, author: str) -> int:
        """Add a version to the store, not the active one, which hands on its region of interest; gives its number.

        Raises:
            ProblemError: unknown, or the store may not be written to.
        """
        self._entry(detector.category)
        with _problems(detector.category):
            return await asyncio.to_thread(Operations(self._store).publish, detector, activate=False, author=author)

    async def operate(
        self, name: str, version: int | None, record: Callable[[Operations, Detector], Operation]
    ) -> Served:
        """Put a new operation in force for a version, by default the active one; it holds from the next request on.

        Args:
            record: records it, on a thread of its own.

        Raises:
            ProblemError: one of SERVED_PROBLEMS; the operation is not possible, or the store may not be written to.
        """
        entry = self._entry(name)
        async with entry.changing:
            served = await self.served(name, version)
            with _problems(name, served.version):
                await asyncio.to_thread(self._store.check_writable, name)
                try:
                    changed = await self.loader.operate(served, record)
                except ValidationError as error:
                    detail = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
                    raise ProblemError(INVALID_REQUEST, detail) from error
                except ValueError as error:
                    raise ProblemError(INVALID_REQUEST, str(error)) from error
                entry.operation_problem = None
        self._entries.tell(entry)
        return changed

    async def operations(self, served: Served) -> list[Operation]:
        """All operations of a version, the latest first.

        Raises:
            ProblemError: they cannot be read.
        """
        with _problems(served.category, served.version):
            return await self.loader.operations(served)

    async def set_shadow(self, name: str, version: int | None) -> None:
        """Let a version score beside the active one, in the store too; None ends that.

        Raises:
            ProblemError: unknown, not to be loaded, active itself, or the store may not be written to.
        """
        entry = self._entry(name)
        async with entry.changing:
            if version is not None and version == entry.served:
                raise ProblemError(VERSION_IN_USE, f"version {version} of {name!r} is the active one already")
            with _problems(name, version), entry.arriving(version):
                await asyncio.to_thread(self._store.check_writable, name)
                if version is not None:
                    await self.loader.load(name, version, retry=True)
                await asyncio.to_thread(self._store.set_shadow, name, version)
                entry.shadow, entry.shadow_problem = version, None
        self._entries.tell(entry)

    def not_ready(self) -> str | None:
        """Why the service cannot take requests yet; None where it can."""
        if not self.complete:
            return "models are still being loaded"
        if any(entry.state is CategoryState.READY for entry in self._entries.values()):
            return None
        if self._entries:
            return "no model could be loaded"
        # The reason names the folder, and who asks this may be anybody.
        return "the model store holds no category" if self.store_problem is None else "the model store cannot be read"

    def warning(self) -> str | None:
        """What is not as the store says, though the service goes on; names no category."""
        if self.store_problem is not None:
            return "the model store cannot be read" + ("; what is loaded goes on serving" if self._entries else "")
        wrong = sum(bool(entry.problems) for entry in self._entries.values())
        return f"what the model store says of {wrong} of the categories is not what is served" if wrong else None

    async def versions(self, name: str) -> list[VersionFacts]:
        """Every version of a category, the latest first.

        Raises:
            ProblemError: unknown, or the store cannot be read.
        """
        entry = self._entry(name)
        with _problems(name):
            active, created = await asyncio.to_thread(read_versions, self._store, name)
        found = sorted(created.items(), reverse=True)
        return [version_facts(entry, self.loader, version, active, time) for version, time in found]

    async def activations(self, name: str) -> list[Activation]:
        """Which version of a category became active when, the latest first.

        Raises:
            ProblemError: unknown, or the store cannot be read.
        """
        self._entry(name)
        with _problems(name):
            return (await asyncio.to_thread(self._store.activations, name))[::-1]

    def discover(self) -> None:
        """List the categories of the store, none of them loaded."""
        self._follower.discover()

    async def run(self) -> None:
        """Load every category, then follow the store until cancelled."""
        try:
            await self._follower.run()
        finally:
            self.loader.close()

    async def _activate(self, entry: Entry, version: int, author: str, *, rollback: bool = False) -> None:
        async with entry.changing:
            with _problems(entry.name, version), entry.arriving(version):
                await asyncio.to_thread(self._store.check_writable, entry.name)
                served = await self.loader.load(entry.name, version, retry=True)
                await asyncio.to_thread(self._store.activate, entry.name, version, author=author, rollback=rollback)
                self._entries.serve(entry, served, self.loader.in_memory(entry.name, entry.served))
        self._entries.tell(entry)

    def _entry(self, name: str) -> Entry:
        if (entry := self._entries.get(name)) is None:
            none = "none: train one" if self.store_problem is None else "none, for the model store cannot be read"
            known = ", ".join(sorted(self._entries)) or none
            raise ProblemError(UNKNOWN_CATEGORY, f"there is no category {quote(name)}; there is {known}")
        return entry


def version_number(text: str) -> int:
    """The number of a version in a path.

    Raises:
        ProblemError: it is none.
    """
    if not NUMBER.fullmatch(text):
        raise ProblemError(UNKNOWN_VERSION, f"there is no version {quote(text)}; versions are numbered from 1")
    return int(text)


@contextmanager
def _problems(name: str, version: int | None = None) -> Iterator[None]:
    """Turn what the store and the loader raise into the answer to a request."""
    which = f"category {name!r}" if version is None else f"version {version} of {name!r}"
    try:
        yield
    except UnknownCategory as error:
        raise ProblemError(UNKNOWN_CATEGORY, f"there is no category {name!r} any more") from error
    except UnknownVersion as error:
        raise ProblemError(UNKNOWN_VERSION, str(error)) from error
    except UnknownOperation as error:
        raise ProblemError(UNKNOWN_OPERATION, str(error)) from error
    except StoreReadOnly as error:
        detail = f"the model store is read-only for the service; use `plumbline models` where it is not ({error})"
        raise ProblemError(STORE_READ_ONLY, detail) from error
    except BudgetError as error:
        raise ProblemError(MODEL_MEMORY, f"{which}: {error}") from error
    except LoadError as error:
        raise ProblemError(VERSION_UNAVAILABLE, f"{which} could not be loaded: {error}") from error
    except ArtifactError as error:  # the history of activations is damaged
        raise ProblemError(VERSION_UNAVAILABLE, f"{which}: {error}") from error
    except WorkerUnavailable as error:
        raise ProblemError(WORKER_UNAVAILABLE, f"{error}; restart the service if it does not by itself") from error
    except (StoreError, OSError) as error:
        raise ProblemError(STORE_UNAVAILABLE, f"{which}: the model store cannot be used now ({error})") from error
