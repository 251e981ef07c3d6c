"""Loading and unloading by number, as the protocols use it that have such calls."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from weakref import ref

import pytest

from models.artifact import ArtifactError
from models.detector import Detector
from models.store import ModelStore
from service.app import create_app
from service.errors import ProblemError
from service.inspection import Service
from service.registry import Registry, version_number
from service.settings import load_settings
from tests.service.support import CATEGORY, make_detector, wait_until


def with_registry(models: Path, check: Callable[[Registry], Awaitable[None]]) -> None:
    """Run a check on the registry of a service that has loaded its models."""

    async def main() -> None:
        app = create_app(load_settings(models=models, device="cpu", records="none"))
        service: Service = app.state.service
        async with app.router.lifespan_context(app):
            while not service.registry.complete:
                await asyncio.sleep(0.01)
            await check(service.registry)

    asyncio.run(main())


def test_load_and_unload(tmp_path: Path) -> None:
    store, detector = ModelStore(tmp_path), make_detector()
    for _ in range(3):
        store.publish(CATEGORY, detector.save)

    async def check(registry: Registry) -> None:
        loaded = await asyncio.gather(*(registry.load(CATEGORY, version) for version in (1, 2, 1, 3)))
        assert [served.version for served in loaded] == [1, 2, 1, 3]
        assert loaded[0] is loaded[2]  # loaded once, though two asked
        assert sorted(registry.loader.versions(CATEGORY)) == [1, 2, 3]
        registry.unload(CATEGORY, 2)
        registry.unload(CATEGORY, 2)  # it is not there any more
        assert sorted(registry.loader.versions(CATEGORY)) == [1, 3]
        with pytest.raises(ProblemError, match="active"):
            registry.unload(CATEGORY, 3)
        registry.unload(CATEGORY)
        assert registry.loader.versions(CATEGORY) == [3]
        assert (await registry.served(CATEGORY, 1)).version == 1
        with pytest.raises(ProblemError, match="has no version 9"):
            await registry.served(CATEGORY, 9)
        for act in (lambda: registry.unload("cable"), lambda: registry.active("../plate")):
            with pytest.raises(ProblemError, match="there is no category"):
                act()

    with_registry(tmp_path, check)


def test_who_leaves_does_not_stop_a_load_that_others_wait_for(tmp_path: Path) -> None:
    store, detector = ModelStore(tmp_path), make_detector()
    for _ in range(2):
        store.publish(CATEGORY, detector.save)

    async def check(registry: Registry) -> None:
        leaving = asyncio.create_task(registry.load(CATEGORY, 1))
        staying = asyncio.create_task(registry.load(CATEGORY, 1))
        while not registry.loader.is_loading(CATEGORY, 1):
            await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (await staying).version == 1

    with_registry(tmp_path, check)


def test_a_version_that_failed_is_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arrays would count in no budget."""
    store, detector = ModelStore(tmp_path), make_detector()
    for _ in range(2):
        store.publish(CATEGORY, detector.save)
    failed = []

    def scores_nothing(detector: Detector, folder: Path) -> None:
        failed.append(ref(detector))
        raise ArtifactError(f"{folder} scored its warm-up image nan; train it again")

    async def check(registry: Registry) -> None:
        monkeypatch.setattr("service.loader._warm", scores_nothing)
        for _ in range(2):  # the second time as the first was remembered
            with pytest.raises(ProblemError, match="warm-up image nan"):
                await registry.load(CATEGORY, 1)
        (detector,) = failed

        def is_gone() -> bool:
            gc.collect()
            return detector() is None

        await asyncio.to_thread(wait_until, is_gone)  # the worker lets go of it a moment after it has answered

    with_registry(tmp_path, check)


@pytest.mark.parametrize("text", ["", "0", "01", "-1", "1.0", "x", "1" * 19, "²", "1\n"])
def test_what_is_no_number_of_a_version(text: str) -> None:
    with pytest.raises(ProblemError, match="numbered from 1"):
        version_number(text)


def test_number_of_a_version() -> None:
    assert version_number("42") == 42
