"""The categories of the model store and the version of each that is served; follows the store while it changes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from models.activations import Activation
from models.artifact import ArtifactError, read_manifest
from models.store import ModelStore, StoreError, StoreReadOnly, UnknownCategory, UnknownVersion
from service.errors import (
    CATEGORY_UNAVAILABLE,
    MODEL_MEMORY,
    NO_EARLIER_VERSION,
    STORE_READ_ONLY,
    STORE_UNAVAILABLE,
    UNKNOWN_CATEGORY,
    UNKNOWN_VERSION,
    VERSION_IN_USE,
    VERSION_UNAVAILABLE,
    WORKER_UNAVAILABLE,
    ProblemError,
    quote,
)
from service.loader import BudgetError, Key, Loaded, Loader, LoadError, Served
from service.settings import Settings
from service.telemetry import Telemetry
from service.worker import Worker, WorkerUnavailable

__all__ = [
    "SERVED_PROBLEMS",
    "Category",
    "CategoryState",
    "Registry",
    "Served",
    "VersionFacts",
    "VersionState",
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

_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_RETRY_WHILE_LOADING_S = "5"

_log = logging.getLogger("plumbline.registry")


class CategoryState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


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


class VersionState(StrEnum):
    STORED = "stored"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


@dataclass(frozen=True)
class VersionFacts:
    """A version of a category, as the store and this process have it.

    Attributes:
        created: when it was published; None where its manifest is damaged.
        active: whether the store says so.
        served: whether requests that name no version are given it.
        memory_bytes: what it holds, where it is loaded.
        reason: why it could not be loaded.
    """

    version: int
    state: VersionState
    created: datetime | None
    active: bool
    served: bool
    shadow: bool
    memory_bytes: int | None
    reason: str | None


@dataclass
class _Entry:
    """What the registry knows of a category; a version named here as served or shadow is in memory."""

    name: str
    state: CategoryState = CategoryState.LOADING
    version: int | None = None
    shadow: int | None = None
    incoming: int | None = None  # loaded or being loaded to become one of the two
    problem: str | None = None
    shadow_problem: str | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def served(self) -> int | None:
        return self.version if self.state is CategoryState.READY else None


class Registry:
    """Hands out the versions that score, and changes them while requests go on.

    All of it runs on the event loop. A swap is one assignment there: a request has the old version or the new.

    Args:
        store: where versions are published.

    Attributes:
        complete: whether every category that there was at the start has been tried.
        store_problem: why the store cannot be followed now; None where it can.
    """

    def __init__(self, store: ModelStore, worker: Worker, telemetry: Telemetry, settings: Settings) -> None:
        self._store = store
        self._telemetry = telemetry
        self._poll_s = settings.store_poll_s
        self._entries: dict[str, _Entry] = {}
        self.store_problem: str | None = None
        self.loader = Loader(store, worker, telemetry, settings, self._pinned)
        self.complete = False

    def categories(self) -> list[Category]:
        """Every category, by name."""
        return [self.category(name) for name in sorted(self._entries)]

    def category(self, name: str) -> Category:
        """One category.

        Raises:
            ProblemError: unknown; a name is looked up, never made into a path.
        """
        entry = self._entry(name)
        reason = "; ".join(filter(None, (entry.problem, entry.shadow_problem))) or None
        served, shadow = self._in_memory(name, entry.served), self._in_memory(name, entry.shadow)
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
        pinned = self._pinned()
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

    async def set_shadow(self, name: str, version: int | None) -> None:
        """Let a version score beside the active one, in the store too; None ends that.

        Raises:
            ProblemError: unknown, not to be loaded, active itself, or the store may not be written to.
        """
        entry = self._entry(name)
        async with entry.changing:
            if version is not None and version == entry.served:
                raise ProblemError(VERSION_IN_USE, f"version {version} of {name!r} is the active one already")
            with _problems(name, version), self._arriving(entry, version):
                await asyncio.to_thread(self._store.check_writable, name)
                if version is not None:
                    await self.loader.load(name, version, retry=True)
                await asyncio.to_thread(self._store.set_shadow, name, version)
                entry.shadow, entry.shadow_problem = version, None
        self._tell(entry)

    def not_ready(self) -> str | None:
        """Why the service cannot take requests yet; None where it can."""
        if not self.complete:
            return "models are still being loaded"
        if any(entry.state is CategoryState.READY for entry in self._entries.values()):
            return None
        return "no model could be loaded" if self._entries else "the model store holds no category"

    def warning(self) -> str | None:
        """What is not as the store says, though the service goes on; names no category."""
        if self.store_problem is not None:
            return "the model store cannot be read; what is loaded goes on serving"
        wrong = sum(entry.problem is not None or entry.shadow_problem is not None for entry in self._entries.values())
        return f"what the model store says of {wrong} of the categories is not what is served" if wrong else None

    async def versions(self, name: str) -> list[VersionFacts]:
        """Every version of a category, the latest first.

        Raises:
            ProblemError: unknown, or the store cannot be read.
        """
        entry = self._entry(name)
        with _problems(name):
            active, created = await asyncio.to_thread(self._read_versions, name)
        return [self._facts(entry, version, active, time) for version, time in sorted(created.items(), reverse=True)]

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
        for name in self._store.categories():
            self._entries[name] = _Entry(name)
        self._telemetry.store_up.set(1)

    async def run(self) -> None:
        """Load every category, then follow the store until cancelled."""
        try:
            await self._follow(*sorted(self._entries))
            self.complete = True
            while True:
                await asyncio.sleep(self._poll_s)
                await self._look()
        finally:
            self.loader.close()

    async def _look(self) -> None:
        """Take over what has changed in the store."""
        try:
            names = await asyncio.to_thread(self._store.categories)
            # The folder of a disk that is not mounted is empty: no reason to take every model away.
            problem = None if names or not self._entries else f"the model store {self._store.root} is empty"
        except (StoreError, OSError) as error:
            names, problem = [], f"the model store cannot be read: {error}"
        if problem is not None:
            problem += "; what is loaded goes on serving"
        if problem != self.store_problem:
            level, message = (logging.INFO, "model store is back") if problem is None else (logging.ERROR, problem)
            _log.log(level, message)
            self.store_problem = problem
            self._telemetry.store_up.set(problem is None)
        if problem is None:
            for name in self._entries.keys() - set(names):
                await self._forget(self._entries[name])
            for name in set(names) - self._entries.keys():
                self._entries[name] = _Entry(name)
                _log.info("new category", extra={"fields": {"category": name}})
            await self._follow(*names)

    async def _follow(self, *names: str) -> None:
        """Serve of each category what the store says; one that fails does not stop the others."""
        for name in names:
            entry = self._entries[name]
            async with entry.changing:
                try:
                    await self._follow_active(entry)
                    await self._follow_shadow(entry)
                    await self._drop_outdated(entry)
                except Exception:
                    _log.exception("following the store failed", extra={"fields": {"category": name}})
                    entry.problem = "following the model store failed; see the service's log"
                    if entry.served is None:
                        entry.state = CategoryState.FAILED
            self._tell(entry)

    async def _follow_active(self, entry: _Entry) -> None:
        version = None
        problem: str | None
        try:
            version = await asyncio.to_thread(self._store.active, entry.name)
            if version is None:
                raise StoreError("no version is active; activate one")
            if entry.state is not CategoryState.READY:
                entry.version = version
            with self._arriving(entry, version):
                await self.loader.load(entry.name, version)
                self._serve(entry, version)
            return
        except LoadError as error:
            problem = f"version {version} could not be loaded: {error}"
        except (ArtifactError, StoreError, OSError, WorkerUnavailable) as error:
            problem = str(error)
        if entry.served is None:
            entry.state = CategoryState.FAILED
        else:
            problem = f"version {entry.version} goes on serving, because {problem}"
        if problem != entry.problem:
            entry.problem = problem
            fields = {"category": entry.name, "serving": entry.served, "reason": problem}
            _log.error("model not loaded", extra={"fields": fields})

    async def _follow_shadow(self, entry: _Entry) -> None:
        version = problem = None
        try:
            version = await asyncio.to_thread(self._store.shadow, entry.name)
            if version is not None and version != entry.shadow:
                with self._arriving(entry, version):
                    await self.loader.load(entry.name, version)
                    entry.shadow = version
        except (LoadError, ArtifactError, StoreError, OSError, WorkerUnavailable) as error:
            problem, version = f"there is no shadow, because it could not be loaded: {error}", None
        if problem != entry.shadow_problem and problem is not None:
            _log.error("shadow not loaded", extra={"fields": {"category": entry.name, "reason": problem}})
        entry.shadow, entry.shadow_problem = version, problem

    async def _drop_outdated(self, entry: _Entry) -> None:
        """Unload what has been deleted from the store, or put there anew, unless it must go on serving."""
        stamps = await asyncio.to_thread(self._stamps, entry.name, self.loader.versions(entry.name))
        for version, stamp in stamps.items():
            loaded = self.loader.loaded(entry.name, version)
            if loaded is not None and loaded.stamp != stamp and (entry.name, version) not in self._pinned():
                self.loader.unload(entry.name, version)

    def _stamps(self, name: str, versions: list[int]) -> dict[int, Hashable]:
        stamps: dict[int, Hashable] = dict.fromkeys(versions)
        for version in versions:
            with suppress(StoreError, OSError):
                stamps[version] = self._store.stamp(name, version)
        return stamps

    async def _activate(self, entry: _Entry, version: int, author: str, *, rollback: bool = False) -> None:
        async with entry.changing:
            with _problems(entry.name, version), self._arriving(entry, version):
                await asyncio.to_thread(self._store.check_writable, entry.name)
                await self.loader.load(entry.name, version, retry=True)
                await asyncio.to_thread(self._store.activate, entry.name, version, author=author, rollback=rollback)
                self._serve(entry, version)
        self._tell(entry)

    def _serve(self, entry: _Entry, version: int) -> None:
        """The swap: from here on requests are given this version."""
        if entry.served != version or entry.problem is not None:
            if entry.served not in (None, version):
                self._telemetry.model_swaps.labels(entry.name).inc()
            fields = {"category": entry.name, "version": version, "before": entry.served}
            _log.info("model active", extra={"fields": fields})
        entry.version, entry.state, entry.problem = version, CategoryState.READY, None
        if entry.shadow == version:
            entry.shadow = None

    async def _forget(self, entry: _Entry) -> None:
        async with entry.changing:
            del self._entries[entry.name]
            for version in self.loader.versions(entry.name):
                self.loader.unload(entry.name, version)
            self._telemetry.model_problem.remove(entry.name)
            _log.warning("category gone", extra={"fields": {"category": entry.name}})

    def _read_versions(self, name: str) -> tuple[int | None, dict[int, datetime | None]]:
        active, created = None, dict[int, datetime | None]()
        with suppress(ArtifactError):  # a damaged pointer is told as the category's reason
            active = self._store.active(name)
        for version in self._store.versions(name):
            created[version] = None
            with suppress(ArtifactError, StoreError):
                created[version] = read_manifest(self._store.folder(name, version)).created
        return active, created

    def _facts(self, entry: _Entry, version: int, active: int | None, created: datetime | None) -> VersionFacts:
        loaded, failure = self.loader.loaded(entry.name, version), self.loader.failure(entry.name, version)
        if loaded is not None:
            state = VersionState.LOADED
        elif self.loader.is_loading(entry.name, version):
            state = VersionState.LOADING
        else:
            state = VersionState.STORED if failure is None else VersionState.FAILED
        return VersionFacts(
            version=version,
            state=state,
            created=created,
            active=version == active,
            served=version == entry.served,
            shadow=version == entry.shadow,
            memory_bytes=None if loaded is None else loaded.memory_bytes,
            reason=failure,
        )

    @contextmanager
    def _arriving(self, entry: _Entry, version: int | None) -> Iterator[None]:
        """Keep a version in memory until it is served; the entry is held by ``changing``."""
        entry.incoming = version
        try:
            yield
        finally:
            entry.incoming = None

    def _pinned(self) -> set[Key]:
        return {
            (entry.name, version)
            for entry in self._entries.values()
            for version in (entry.served, entry.shadow, entry.incoming)
            if version is not None
        }

    def _entry(self, name: str) -> _Entry:
        if (entry := self._entries.get(name)) is None:
            known = ", ".join(sorted(self._entries)) or "none: train one"
            raise ProblemError(UNKNOWN_CATEGORY, f"there is no category {quote(name)}; there is {known}")
        return entry

    def _in_memory(self, name: str, version: int | None) -> Served | None:
        loaded: Loaded | None = None if version is None else self.loader.loaded(name, version)
        return None if loaded is None else loaded.served

    def _tell(self, entry: _Entry) -> None:
        if entry.name in self._entries:
            self._telemetry.model_problem.labels(entry.name).set(bool(entry.problem or entry.shadow_problem))


def version_number(text: str) -> int:
    """The number of a version in a path.

    Raises:
        ProblemError: it is none.
    """
    if not _NUMBER.fullmatch(text):
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
        raise ProblemError(STORE_UNAVAILABLE, f"{which}: the model store cannot be read ({error})") from error
