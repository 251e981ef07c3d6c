"""Following the model store: what is published, activated, deleted or mended there is served, or told as a problem."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable
from contextlib import suppress

from models.artifact import ArtifactError
from models.store import ModelStore
from models.store_errors import StoreError, UnknownVersion
from service.entries import CategoryState, Entries, Entry
from service.loader import Loader, LoadError
from service.telemetry import Telemetry
from service.worker import WorkerUnavailable

_SILENT_S = 30.0  # a listing takes milliseconds, also over a network

_log = logging.getLogger("plumbline.registry")


class Follower:
    """Looks at the store again and again, and changes the entries to what it finds.

    A look reads no artifact that has not changed. It needs no notices of the file system, which many mounts lack.

    Args:
        poll_s: seconds between two looks.

    Attributes:
        complete: whether every category that there was at the start has been tried.
    """

    def __init__(
        self, store: ModelStore, loader: Loader, entries: Entries, telemetry: Telemetry, poll_s: float
    ) -> None:
        self._store = store
        self._loader = loader
        self._entries = entries
        self._telemetry = telemetry
        self._poll_s = poll_s
        self.complete = False
        self._problem: str | None = None
        self._asked_at: float | None = None
        telemetry.store_up.set_function(lambda: self.problem is None)

    @property
    def problem(self) -> str | None:
        """Why the store cannot be followed now; None where it can."""
        since = self._asked_at  # a share whose server is gone raises nothing
        if since is not None and (waited_s := time.monotonic() - since) > _SILENT_S:
            return f"the model store {self._store.root} has not answered for {waited_s:.0f} s"
        return self._problem

    def discover(self) -> None:
        """List the categories of the store, none of them loaded; what cannot be read now is looked at again later."""
        names, problem = self._names()
        self._tell(problem)
        for name in names:
            self._entries[name] = Entry(name)

    async def run(self) -> None:
        """Load every category, then follow the store until cancelled."""
        await self._follow(*sorted(self._entries))
        self.complete = True
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self._look()
            except Exception:  # a look that fails must not be the last
                _log.exception("following the model store failed")

    async def _look(self) -> None:
        """Take over what has changed in the store."""
        self._asked_at = time.monotonic()
        names, problem = await asyncio.to_thread(self._names)
        self._asked_at = None
        self._tell(problem)
        if problem is None:
            for name in self._entries.keys() - set(names):
                await self._forget(self._entries[name])
            for name in set(names) - self._entries.keys():
                self._entries[name] = Entry(name)
                _log.info("new category", extra={"fields": {"category": name}})
            await self._follow(*names)

    def _names(self) -> tuple[list[str], str | None]:
        """The categories of the store, and why it cannot be followed now; reads the store."""
        try:
            names = self._store.categories()
            # The folder of a disk that is not mounted is empty: no reason to take every model away.
            problem = None if names or not self._entries else f"the model store {self._store.root} is empty"
        except (StoreError, OSError) as error:
            names, problem = [], f"the model store cannot be read: {error}"
        return names, f"{problem}; what is loaded goes on serving" if problem and self._entries else problem

    def _tell(self, problem: str | None) -> None:
        if problem != self._problem:
            level, message = (logging.INFO, "model store is back") if problem is None else (logging.ERROR, problem)
            _log.log(level, message)
        self._problem = problem

    async def _follow(self, *names: str) -> None:
        """Serve of each category what the store says; one that fails does not stop the others."""
        for name in names:
            entry = self._entries[name]
            async with entry.changing:
                try:
                    await self._follow_active(entry)
                    await self._follow_shadow(entry)
                    await self._drop_outdated(entry)
                    await self._follow_operations(entry)
                except Exception:
                    _log.exception("following the store failed", extra={"fields": {"category": name}})
                    entry.problem = "following the model store failed; see the service's log"
                    if entry.served is None:
                        entry.state = CategoryState.FAILED
            self._entries.tell(entry)

    async def _follow_active(self, entry: Entry) -> None:
        version = None
        problem: str | None
        try:
            version = await asyncio.to_thread(self._store.active, entry.name)
            if version is None:
                raise StoreError("no version is active; activate one")
            if entry.state is not CategoryState.READY:
                entry.version = version
            with entry.arriving(version):
                served = await self._loader.load(entry.name, version)
                self._entries.serve(entry, served, self._loader.in_memory(entry.name, entry.served))
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

    async def _follow_shadow(self, entry: Entry) -> None:
        version = problem = None
        try:
            version = await asyncio.to_thread(self._store.shadow, entry.name)
            if version == entry.served:
                version = None  # it would be compared with itself
            if version is not None and version != entry.shadow:
                with entry.arriving(version):
                    await self._loader.load(entry.name, version)
                    entry.shadow = version
        except (LoadError, ArtifactError, StoreError, OSError, WorkerUnavailable) as error:
            problem, version = f"there is no shadow, because it could not be loaded: {error}", None
        if problem != entry.shadow_problem and problem is not None:
            _log.error("shadow not loaded", extra={"fields": {"category": entry.name, "reason": problem}})
        entry.shadow, entry.shadow_problem = version, problem

    async def _drop_outdated(self, entry: Entry) -> None:
        """Unload what has been deleted from the store, or put there anew, unless it must go on serving."""
        stamps = await asyncio.to_thread(self._stamps, entry.name, self._loader.versions(entry.name))
        for version, stamp in stamps.items():
            loaded = self._loader.loaded(entry.name, version)
            if loaded is not None and loaded.stamp != stamp and (entry.name, version) not in self._entries.pinned():
                self._loader.unload(entry.name, version)

    def _stamps(self, name: str, versions: list[int]) -> dict[int, Hashable]:
        stamps: dict[int, Hashable] = dict.fromkeys(versions)
        for version in versions:
            with suppress(StoreError, OSError):
                stamps[version] = self._store.stamp(name, version)
        return stamps

    async def _follow_operations(self, entry: Entry) -> None:
        """Take over what another process has recorded; what cannot be read leaves the operation in force."""
        problem = None
        for version in self._loader.versions(entry.name):
            if (loaded := self._loader.loaded(entry.name, version)) is None:
                continue
            try:
                if await self._loader.is_outdated(loaded.served):
                    await self._loader.operate(loaded.served)
            except UnknownVersion:  # deleted meanwhile
                continue
            except (ArtifactError, StoreError, OSError) as error:
                number = loaded.served.operation.number
                problem = f"version {version} goes on with operation {number}, because {error}"
        if problem is not None and problem != entry.operation_problem:
            _log.error("operation not read", extra={"fields": {"category": entry.name, "reason": problem}})
        entry.operation_problem = problem

    async def _forget(self, entry: Entry) -> None:
        async with entry.changing:
            self._entries.forget(entry)
            for version in self._loader.versions(entry.name):
                self._loader.unload(entry.name, version)
