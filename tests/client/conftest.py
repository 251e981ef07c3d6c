from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.store import ModelStore
from service.server import serving
from service.settings import load_settings
from tests.client.support import KINDS
from tests.service.support import CATEGORY, MAX_UPLOAD_BYTES, encode, make_detector, part

Connect = Callable[..., Any]


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running service."""
    models = tmp_path_factory.mktemp("store")
    ModelStore(models).publish(CATEGORY, make_detector().save)
    with serving(load_settings(models=models, port=0, device="cpu", max_upload_bytes=MAX_UPLOAD_BYTES)) as url:
        yield url


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in two folders, one of them no image, and a file of another kind."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "b").mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encode(part(number, defective=number == 1)))
    (folder / "b" / "3.JPG").write_bytes(encode(part(3), "JPEG"))
    (folder / "b" / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("x")
    return folder


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Make a client, sync or async: ``connect(url, **options)``; it is closed at the end."""
    clients = []

    def make(url: str, **options: Any) -> Any:
        clients.append(KINDS[request.param](url, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
