"""What no request may do, whatever it says: reach files, or leave images and keys in the log."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from service.keys import create_key
from service.security import Scope
from service.telemetry import configure_logging
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, encode, part, process

TARGET = "outside"
ESCAPES = [
    f"../{TARGET}",
    f"../../{TARGET}",
    f"..\\{TARGET}",
    f"{CATEGORY}/../../{TARGET}",
    f"./{CATEGORY}",
    f"{CATEGORY}/1",
    f"{CATEGORY}\0",
    "/etc/passwd",
    "..",
    ".",
    "~",
    "%2e%2e%2f" + TARGET,
    "file:///etc/passwd",
]
IMAGE = {"content-type": "image/png"}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def parameters(operation: dict[str, Any], place: str) -> list[str]:
    return [entry["name"] for entry in operation.get("parameters", []) if entry["in"] == place]


@pytest.fixture
def plant(tmp_path: Path, models: Path) -> Path:
    """A model store, and beside it what nobody may see; it looks like a category, so only its place keeps it out."""
    store = tmp_path / "store"
    shutil.copytree(models, store)
    shutil.copytree(store / CATEGORY, tmp_path / TARGET)
    return store


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and "records" not in path.parts
    }


@pytest.mark.slow
def test_no_parameter_reaches_the_file_system(serve: Serve, plant: Path) -> None:
    """Every path and query parameter of every operation, as the OpenAPI document has them, filled with ways out."""
    with serve(plant) as client:
        before, tried = snapshot(plant.parent), 0
        for method, path, operation in operations(client.get("/openapi.json").json()):
            statuses = set(operation["responses"])
            fillings: list[tuple[str, dict[str, str]]] = []
            names = parameters(operation, "path")
            right = {"category": CATEGORY, "model": CATEGORY, "projectName": CATEGORY}
            for name, value in itertools.product(names, ESCAPES):
                filled = path
                for other in names:
                    text = value if other == name else right.get(other, "1")
                    filled = filled.replace(f"{{{other}}}", quote(text, safe="").replace(".", "%2E"))
                fillings.append((filled, {}))
            plain = path
            for other in names:
                plain = plain.replace(f"{{{other}}}", right.get(other, "1"))
            fillings += [(plain, {name: value}) for name in parameters(operation, "query") for value in ESCAPES]
            for target, query in fillings:
                url = client.base_url.copy_with(raw_path=target.encode())
                body = {"content": b"" if method == "GET" else encode(part(0)), "headers": IMAGE}
                response = client.request(method, url, params=query or None, **body)
                tried += 1
                # An escaped slash makes another address, which may not exist.
                assert str(response.status_code) in statuses | {"404", "405"}, (method, target, query, response.text)
                assert response.status_code < 500
                assert "root:" not in response.text
                assert str(plant.parent) not in response.text
                if not query:
                    assert response.status_code >= 400, (method, target)
        assert tried > 100
        assert snapshot(plant.parent) == before


@pytest.mark.slow
def test_log_has_neither_images_nor_keys(models: Path, tmp_path: Path) -> None:
    """A process at its most talkative; right and wrong keys in every place of a request, images in every body."""
    file, log = tmp_path / "keys.json", tmp_path / "log"
    _, right = create_key(file, "everything", tuple(Scope))
    _, narrow = create_key(file, "nothing", ())
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    image = encode(part(0))
    settings = {"records": tmp_path / "records", "keys": file, "log_level": "debug"}
    with process(models, log, **settings) as (service, url):
        with httpx.Client(base_url=url, timeout=60) as client:
            statuses = {status for key in (right, narrow, wrong) for status in send_everywhere(client, key, image)}
        assert statuses >= {200, 401, 403, 404, 422}
        service.terminate()
        printed, _ = service.communicate(timeout=60)
    text = log.read_text() + printed
    for key in (right, narrow, wrong):
        secret = key.split("_")[2]
        assert not any(secret[start : start + 12] in text for start in range(len(secret) - 12))
    for form in (image.hex(), base64.b64encode(image).decode(), repr(image), json.dumps(image.decode("latin-1"))):
        assert not any(form[start : start + 40] in text for start in range(0, len(form) - 40, 997))
    lines = [json.loads(line) for line in text.splitlines()]
    changes = [line for line in lines if line["logger"] == "plumbline.audit"]
    refused = {(line.get("caller"), line["status"]) for line in changes}
    assert ("nothing", 403) in refused
    assert refused & {(None, 401), (None, 429)}
    assert all(line["method"] == "POST" and line["path"].endswith("/activate") for line in changes)
    assert all(line["address"] == "127.0.0.1" for line in changes)


def send_everywhere(client: httpx.Client, key: str, image: bytes) -> Iterator[int]:
    score, activate = f"/v1/categories/{CATEGORY}/score", f"/v1/categories/{CATEGORY}/activate"
    bearer = {"Authorization": f"Bearer {key}"}
    for name, value in (
        ("Authorization", f"Bearer {key}"),
        ("Authorization", f"Bearer  {key} {key}"),
        ("Authorization", key),
        ("Authorization", f"Basic {key}"),
        ("Authorization", f"AWS4-HMAC-SHA256 Credential={key}"),
        ("X-Api-Key", key),
        ("X-Request-Id", key),
        ("X-Request-Timeout", key),
        ("X-Forwarded-For", key),
        ("Cookie", f"key={key}"),
        ("User-Agent", key),
        ("Origin", key),
        ("Host", key),
        ("Content-Type", key),
    ):
        yield client.post(score, content=image, headers=IMAGE | {name: value}).status_code
        yield client.get("/2020-11-20/projects", headers={name: value}).status_code
    for path in (
        f"/{key}",
        f"/v1/categories/{key}",
        f"/v1/inspections/{key}",
        f"/v2/models/{key}",
        "/" + 140 * "a" + key,
    ):
        yield client.get(path, headers=bearer).status_code
    yield client.request("POST", score, params={"part": key, "key": key}, content=image, headers=bearer).status_code
    yield client.post(score, params={"part": key}, content=image, headers=bearer | IMAGE).status_code
    for body in (image, image[:1000], image[:3000] + image, key.encode(), base64.b64encode(image)):
        yield client.post(score, content=body, headers=bearer | IMAGE).status_code
        yield client.post(score, files={"image": (key, body)}, headers=bearer).status_code
        yield client.post(score, files={key: (key, body)}, headers=bearer).status_code
        text = body.decode("latin-1")
        yield client.post(activate, json={"version": text, "key": key}, headers=bearer).status_code
        yield client.post(
            f"/v2/models/{CATEGORY}/infer", json={"inputs": [text], "id": key}, headers=bearer
        ).status_code


def test_a_change_is_logged_whatever_the_level() -> None:
    level = logging.getLogger().level
    handlers = logging.getLogger().handlers[:]
    try:
        configure_logging("error")
        assert logging.getLogger("plumbline.audit").isEnabledFor(logging.INFO)
        assert not logging.getLogger("plumbline.requests").isEnabledFor(logging.INFO)
    finally:
        logging.basicConfig(level=level, handlers=handlers, force=True)
