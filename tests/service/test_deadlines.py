"""Deadlines, bounds and batches on a running server."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.detector import Detector
from models.store import ModelStore
from service.app import create_app
from service.settings import load_settings
from tests.service.conftest import Serve
from tests.service.support import (
    CATEGORY,
    assert_problem,
    encode,
    held_worker,
    make_detector,
    metric,
    part,
    post_head,
    wait_until,
)
from tests.threads import torch_threads

SCORE = f"/v1/categories/{CATEGORY}/score"
HEATMAP = f"/v1/categories/{CATEGORY}/heatmap"
OTHER = "other"
BYTES = {"content-type": "application/octet-stream"}
SHORT = 5  # seconds that will pass; an upload takes none of them, on however busy a machine


def send(client: httpx.Client, timeout: object = None, *, category: str = CATEGORY, seed: int = 0) -> httpx.Response:
    headers = BYTES if timeout is None else BYTES | {"X-Request-Timeout": str(timeout)}
    return client.post(f"/v1/categories/{category}/score", content=encode(part(seed)), headers=headers)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_timeout_that_is_none(client: httpx.Client, value: str) -> None:
    for route in (SCORE, HEATMAP):
        response = client.post(route, content=encode(part(0)), headers=BYTES | {"X-Request-Timeout": value})
        assert_problem(response, 422, "invalid-request", "X-Request-Timeout")


def test_a_timeout_above_the_most(serve: Serve, models: Path) -> None:
    with serve(models, request_timeout_s=5, max_request_timeout_s=30) as client:
        assert_problem(send(client, 31), 422, "invalid-request", "X-Request-Timeout", "31", "30 s")
        assert send(client, 30).status_code == 200


def test_a_deadline_that_passes_in_the_queue(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(models) as client, held_worker(monkeypatch) as gate, ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, client, 60)
        assert gate.entered.wait(60)
        assert_problem(send(client, SHORT), 504, "deadline-exceeded", f"{SHORT} s", "X-Request-Timeout")
        wait_until(lambda: metric(client, "plumbline_queue_depth") == 0)
        gate.open.set()
        assert first.result().status_code == 200
        assert send(client).status_code == 200
        assert gate.images == 2  # the one that was too late never ran
        assert metric(client, "plumbline_rejects_total", reason="deadline-exceeded") == 1


def test_a_deadline_that_passes_on_the_device_is_answered_at_once(
    serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(models) as client, held_worker(monkeypatch) as gate:
        assert_problem(send(client, SHORT), 504, "deadline-exceeded")
        assert gate.images == 1
        assert client.get("/healthz").status_code == 200  # a deadline is the client's, it says nothing of the device


def measured(client: httpx.Client, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the service believe that an image takes so long."""
    monkeypatch.setattr("service.pace.Pace._valid", lambda self: (seconds, seconds))


def test_what_cannot_be_met_is_refused_before_its_bytes(
    serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(models) as client, monkeypatch.context() as patch:
        measured(client, 21, patch)  # a window-by-window network on a CPU
        response = send(client)
        assert_problem(response, 503, "deadline-too-short", "21 s", "X-Request-Timeout")
        assert int(response.headers["retry-after"]) >= 1
        assert post_head(client, SCORE, 1000).startswith("HTTP/1.1 503 ")
        assert send(client, 22).status_code == 200
        assert metric(client, "plumbline_rejects_total", reason="deadline-too-short") == 2


def test_what_waits_counts_against_a_deadline(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(models) as client, held_worker(monkeypatch) as gate, ThreadPoolExecutor(3) as pool:
        with monkeypatch.context() as patch:
            measured(client, 20, patch)
            waiting = [pool.submit(send, client, 200)]
            assert gate.entered.wait(60)
            waiting += [pool.submit(send, client, 200) for _ in range(2)]
            wait_until(lambda: metric(client, "plumbline_queue_depth") == 2)
            response = send(client, 60)
            assert_problem(response, 503, "deadline-too-short")
            assert 40 <= int(response.headers["retry-after"]) <= 72  # two that wait and one that runs
        gate.open.set()
        assert [one.result().status_code for one in waiting] == [200] * 3


def test_bytes_are_bounded(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, image = len(encode(part(0))), part(0).nbytes
    limit = 2 * upload + int(1.5 * image)  # the second fits as it is sent, but not decoded
    with (
        serve(models, queue_bytes=limit) as client,
        held_worker(monkeypatch) as gate,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(send, client)
        assert gate.entered.wait(60)
        assert metric(client, "plumbline_queue_bytes") == upload + image
        response = send(client)
        assert_problem(response, 503, "queue-full", str(limit))
        assert int(response.headers["retry-after"]) >= 1
        gate.open.set()
        assert first.result().status_code == 200
        wait_until(lambda: metric(client, "plumbline_queue_bytes") == 0)
        assert send(client).status_code == 200


def test_an_upload_is_bounded_while_it_comes(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = len(encode(part(0))) + part(0).nbytes
    with (
        serve(models, queue_bytes=held + 1000) as client,
        held_worker(monkeypatch) as gate,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(send, client)
        assert gate.entered.wait(60)
        response = client.post(SCORE, content=bytes(2000), headers=BYTES)  # no image, but that it does not come to
        assert_problem(response, 503, "queue-full")
        gate.open.set()
        assert first.result().status_code == 200


@pytest.fixture(scope="module")
def two_categories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    for name in (CATEGORY, OTHER):
        ModelStore(root).publish(name, make_detector(name).save)
    return root


def test_what_waits_is_scanned_in_batches_by_category(
    serve: Serve, two_categories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        torch_threads(1),  # nothing joins what is scanned
        serve(two_categories, batch_size=4) as client,
        held_worker(monkeypatch) as gate,
        ThreadPoolExecutor(9) as pool,
    ):
        first = pool.submit(send, client, 60)
        assert gate.entered.wait(60)
        waiting: list[tuple[str, int, Future[httpx.Response]]] = []
        for number, category in enumerate([CATEGORY] * 5 + [OTHER] * 3):
            future = pool.submit(send, client, 60, category=category, seed=number)
            waiting.append((category, number, future))
            wait_until(lambda expected=number + 1: metric(client, "plumbline_queue_depth") == expected)  # type: ignore[misc]
        gate.open.set()
        assert first.result().status_code == 200
        answers: list[tuple[str, int, Any]] = [(c, n, future.result().json()) for c, n, future in waiting]
        assert metric(client, "plumbline_batch_images_count", reason="full") == 1
        assert metric(client, "plumbline_batch_images_sum", reason="full") == 4
        assert metric(client, "plumbline_batch_images_count", reason="idle") == 3  # the first alone, then 3 and 1
        store = ModelStore(two_categories)
        for category, seed, answer in answers:
            detector = Detector.load(store.folder(category, 1), "cpu")
            [alone] = detector.predict([part(seed)])
            assert answer["category"] == category
            assert answer["image_score"] == alone.image_score
            assert set(answer["times"]) == {"upload", "decode", "place", "queue", "score", "judge", "total"}


def test_images_wait_for_others_where_they_are_told_to(serve: Serve, models: Path) -> None:
    with serve(models, batch_size=2, batch_wait_ms=3_600_000) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, client, 60)
        wait_until(lambda: metric(client, "plumbline_queue_depth") == 1)
        second = pool.submit(send, client, 60)
        assert (first.result().status_code, second.result().status_code) == (200, 200)
        assert metric(client, "plumbline_batch_images_sum", reason="full") == 2
    with serve(models, batch_size=2, batch_wait_ms=1) as client:
        assert send(client).status_code == 200
        assert metric(client, "plumbline_batch_images_sum", reason="waited") == 1


def test_the_default_deadline_is_that_of_the_settings(models: Path) -> None:
    settings = load_settings(models=models, records="none")
    assert (settings.request_timeout_s, settings.batch_wait_ms) == (10, 0)
    document = asyncio.run(asyncio.to_thread(create_app(settings).openapi))
    for route in ("score", "heatmap", "explain"):
        operation = document["paths"][f"/v1/categories/{{category}}/{route}"]["post"]
        assert "X-Request-Timeout" in [parameter["name"] for parameter in operation["parameters"]]
        assert {"503", "504"} <= set(operation["responses"])
