"""The versions that are in memory: read beside the worker, warmed on it, unloaded when the budget asks for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from models.artifact import ArtifactError, Manifest, verify
from models.calibration import OperatingPoint
from models.detector import Detector
from models.device import resolve_device, set_threads
from models.memory import array_bytes
from models.operation import Operation, Operations
from models.store import ModelStore
from service.settings import Settings
from service.telemetry import Telemetry
from service.worker import Worker, WorkerUnavailable

_log = logging.getLogger("plumbline.models")


@dataclass(frozen=True)
class Served:
    """A version that is ready to score. A request holds one from its start to its end, so no answer is mixed of two."""

    category: str
    version: int
    detector: Detector
    operation: Operation

    @property
    def point(self) -> OperatingPoint:
        """Where it decides."""
        return self.operation.operating_point


class LoadError(Exception):
    """A version cannot be loaded; the message is the reason, without which version."""


class BudgetError(LoadError):
    """It does not fit into the memory budget beside what must stay."""


@dataclass(frozen=True)
class Loaded:
    """A version in memory.

    Attributes:
        stamp: of its files, when they were read.
        memory_bytes: what its arrays hold, measured after it has scored an image.
    """

    served: Served
    stamp: Hashable
    memory_bytes: int


Key = tuple[str, int]
Result = TypeVar("Result")


class Loader:
    """Loads versions one after the other, and keeps them until the budget needs their place.

    Files are read, checked and, on a CPU, made into a detector on a thread of its own, so that scoring goes on
    meanwhile; the worker does what only it may: the warm-up image, and on a GPU all that touches the device.

    Args:
        pinned: gives what may not be unloaded.
    """

    def __init__(
        self,
        store: ModelStore,
        worker: Worker,
        telemetry: Telemetry,
        settings: Settings,
        pinned: Callable[[], Set[Key]],
    ) -> None:
        self._store = store
        self._operations = Operations(store)
        self._worker = worker
        self._telemetry = telemetry
        self._device = settings.device
        self._budget = settings.model_memory_bytes
        self._pinned = pinned
        self._loaded: dict[Key, Loaded] = {}  # the least recently used first
        self._failed: dict[Key, tuple[Hashable, str]] = {}  # no exceptions: they hold what was being loaded
        self._measured: dict[Key, tuple[Hashable, int]] = {}
        self._loading: dict[Key, asyncio.Task[Loaded]] = {}
        self._turn = asyncio.Lock()
        self._threads = settings.threads

    def loaded(self, category: str, version: int) -> Loaded | None:
        """A version if it is in memory."""
        return self._loaded.get((category, version))

    def in_memory(self, category: str, version: int | None) -> Served | None:
        """A version as it is served, where it is loaded; looking is no use of it."""
        loaded = None if version is None else self.loaded(category, version)
        return None if loaded is None else loaded.served

    def versions(self, category: str) -> list[int]:
        """The versions of a category that are in memory."""
        return [version for name, version in self._loaded if name == category]

    def is_loading(self, category: str, version: int) -> bool:
        """Whether a version is just being loaded."""
        return (category, version) in self._loading

    def failure(self, category: str, version: int) -> str | None:
        """Why a version could not be loaded when that was last tried."""
        failed = self._failed.get((category, version))
        return None if failed is None else failed[1]

    def use(self, category: str, version: int) -> Served | None:
        """A version if it is in memory, which counts as its use."""
        key = category, version
        if (loaded := self._loaded.pop(key, None)) is None:
            return None
        self._loaded[key] = loaded
        return loaded.served

    async def load(self, category: str, version: int, *, retry: bool = False) -> Served:
        """A version, loaded and warmed unless it is already.

        Who waits may be cancelled; the loading goes on for whoever else waits.

        Args:
            retry: whether to try what failed before although its files have not changed since.

        Raises:
            LoadError: it is damaged, not what this build reads, or too large for the budget (BudgetError).
            StoreError: it is not in the store.
            OSError: the store cannot be read.
            WorkerUnavailable: the worker is dead or stopping.
        """
        key = category, version
        stamp = await asyncio.to_thread(self._store.stamp, category, version)
        if (loaded := self._loaded.get(key)) is not None and loaded.stamp == stamp:
            self.use(category, version)
            return loaded.served
        if not retry and (failed := self._failed.get(key)) is not None and failed[0] == stamp:
            raise LoadError(failed[1])
        if (task := self._loading.get(key)) is None:
            task = self._loading[key] = asyncio.create_task(self._load(key, stamp))
            task.add_done_callback(partial(self._finish, key))
        return (await asyncio.shield(task)).served

    async def operate(
        self, served: Served, record: Callable[[Operations, Detector], Operation] | None = None
    ) -> Served:
        """Decide by the operation that is in force now, or that ``record`` puts in force.

        Args:
            record: on a thread of its own; what it raises is passed on.

        Raises:
            StoreError, ArtifactError, OSError: the operations cannot be read or written.
        """
        find = self._in_force if record is None else partial(record, self._operations)
        operation = await asyncio.to_thread(find, served.detector)
        changed = replace(served, operation=operation)
        key = served.category, served.version
        loaded = self._loaded.get(key)
        if loaded is not None and loaded.served.detector is served.detector:
            self._loaded[key] = replace(loaded, served=changed)  # its place among the least used stays
        return changed

    async def is_outdated(self, served: Served) -> bool:
        """Whether another process has put another operation in force.

        Raises:
            StoreError, OSError: the operations cannot be read.
        """
        latest = await asyncio.to_thread(self._operations.latest_number, served.category, served.version)
        return latest != served.operation.number

    async def operations(self, served: Served) -> list[Operation]:
        """All operations of a version, the latest first; the last is the artifact's own.

        Raises:
            StoreError, ArtifactError, OSError: they cannot be read.
        """
        history = await asyncio.to_thread(self._operations.history, served.category, served.version)
        return [*reversed(history), served.detector.own_operation]

    def unload(self, category: str, version: int) -> None:
        """Take a version out of memory; requests that hold it keep it until they are answered."""
        if self._loaded.pop((category, version), None) is not None:
            self._telemetry.model.remove(category, version)
            self._telemetry.model_memory.remove(category, version)
            _log.info("model unloaded", extra={"fields": {"category": category, "version": version}})

    def close(self) -> None:
        """Load nothing more."""
        for task in self._loading.values():
            task.cancel()

    def _finish(self, key: Key, task: asyncio.Task[Loaded]) -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may have

    async def _load(self, key: Key, stamp: Hashable) -> Loaded:
        category, version = key
        async with self._turn:
            try:
                folder = await asyncio.to_thread(self._store.folder, category, version)
                measured_stamp, size = self._measured.get(key, (None, 0))
                if measured_stamp != stamp:
                    size = await asyncio.to_thread(_size, folder)
                self._make_room(key, size)
                loaded = await self._read(key, folder, stamp)
                self._measured[key] = stamp, loaded.memory_bytes
                self._make_room(key, loaded.memory_bytes)
            except BudgetError:
                raise  # what stands in its way may go
            except ArtifactError as error:
                raise self._fail(key, stamp, str(error)) from error
            except (OSError, WorkerUnavailable):
                raise
            except Exception as error:
                _log.exception("loading a model failed", extra={"fields": {"category": category, "version": version}})
                reason = f"unexpected {type(error).__name__}; see the service's log"
                raise self._fail(key, stamp, reason) from error
            self._failed.pop(key, None)
            self._loaded.pop(key, None)
            self._loaded[key] = loaded
            self._telemetry.model.labels(category, version).set(1)
            self._telemetry.model_memory.labels(category, version).set(loaded.memory_bytes)
            return loaded

    async def _read(self, key: Key, folder: Path, stamp: Hashable) -> Loaded:
        category, version = key
        loop = asyncio.get_running_loop()
        begun = loop.time()
        manifest, read = await self._apart(partial(_read, folder, self._device))

        def warm() -> tuple[Detector, int]:
            detector = read or Detector.restore(folder, manifest, self._device)
            _warm(detector, folder)
            return detector, array_bytes(detector)

        done = await self._worker.run(warm)
        detector, memory = done.value
        operation = await self._apart(partial(self._in_force, detector))
        fields = {
            "category": category,
            "version": version,
            "s": round(loop.time() - begun, 3),
            "worker_s": round(done.ran_s, 3),
            "bytes": memory,
        }
        _log.info("model loaded", extra={"fields": fields})
        return Loaded(Served(category, version, detector, operation), stamp, memory)

    async def _apart(self, function: Callable[[], Result]) -> Result:
        """Run on a thread that ends with it.

        OpenMP keeps a team for every thread that has computed. With more threads in teams than there are cores, those
        of libgomp go to sleep after each of a scan's operations, where they would wait for the next one.
        """
        initializer = None if self._threads is None else partial(set_threads, self._threads)
        pool = ThreadPoolExecutor(1, "loader", initializer)
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _in_force(self, detector: Detector) -> Operation:
        """The operation in force, and its calibration made now rather than with the first image."""
        operation = self._operations.in_force(detector)
        detector.calibration_for(operation.region_of_interest)
        return operation

    def _fail(self, key: Key, stamp: Hashable, reason: str) -> LoadError:
        self._failed[key] = stamp, reason
        self._telemetry.model_failures.labels(key[0]).inc()
        return LoadError(reason)

    def _make_room(self, key: Key, needed: int) -> None:
        """Unload the least recently used until a version of so many bytes fits."""
        pinned = self._pinned()
        others = {other: loaded.memory_bytes for other, loaded in self._loaded.items() if other != key}
        kept = sum(size for other, size in others.items() if other in pinned)
        if kept + needed > self._budget:
            raise BudgetError(
                f"it takes {needed} bytes; of the {self._budget} that models may hold (PLUMBLINE_MODEL_MEMORY_BYTES), "
                f"active and shadow versions hold {kept}: allow more, or take a shadow or a category away"
            )
        held = sum(others.values())
        for other, size in others.items():
            if held + needed <= self._budget:
                return
            if other not in pinned:
                self.unload(*other)
                held -= size


def _read(folder: Path, device: str) -> tuple[Manifest, Detector | None]:
    """Check a version's files; make the detector too, unless that would touch a GPU."""
    manifest = verify(folder)
    on_gpu = resolve_device(device).type != "cpu"
    return manifest, None if on_gpu else Detector.restore(folder, manifest, device)


def _warm(detector: Detector, folder: Path) -> None:
    side = detector.geometry.image_size
    (prediction,) = detector.predict([np.full((side, side, 3), 127, np.uint8)])
    if not np.isfinite(prediction.image_score):
        raise ArtifactError(f"{folder} scored its warm-up image {prediction.image_score}; train it again")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
