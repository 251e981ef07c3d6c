from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from models.detector import Detector
from models.store import ModelStore
from service.server import serving
from service.settings import load_settings
from tests.service.support import CATEGORY, MAX_PIXELS, MAX_UPLOAD_BYTES, make_detector


class Serve(Protocol):
    def __call__(self, models: Path, *, loaded: bool = True, **options: Any) -> Any: ...


@pytest.fixture(scope="session")
def detector(models: Path) -> Detector:
    """The detector that the server has, loaded from the same artifact."""
    store = ModelStore(models)
    version = store.active(CATEGORY)
    assert version is not None
    return Detector.load(store.folder(CATEGORY, version), "cpu")


@pytest.fixture(scope="session")
def detectors() -> list[Detector]:
    """Three that score the same image differently."""
    return [make_detector(random_seed=seed) for seed in range(3)]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with one category."""
    root = tmp_path_factory.mktemp("store")
    ModelStore(root).publish(CATEGORY, make_detector().save)
    return root


@contextmanager
def _serve(models: Path, *, loaded: bool = True, **options: Any) -> Iterator[httpx.Client]:
    settings = load_settings(**{"models": models, "port": 0, "device": "cpu", "records": "none", **options})
    with serving(settings, loaded=loaded) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Start a server of one's own on a free port: ``with serve(models, **settings) as client``."""
    return _serve


@pytest.fixture(scope="session")
def client(models: Path) -> Iterator[httpx.Client]:
    """A client of a running server."""
    with _serve(models, max_upload_bytes=MAX_UPLOAD_BYTES, max_pixels=MAX_PIXELS) as client:
        yield client
