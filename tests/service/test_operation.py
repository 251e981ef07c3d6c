"""Health, readiness, metrics, overload, and what happens when parts of the service fail."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.artifact import write_manifest
from models.detector import Detector
from models.geometry import ScanGeometry
from models.scan import Scan
from models.store import ModelStore
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

SCORE = f"/v1/categories/{CATEGORY}/score"
BYTES = {"content-type": "application/octet-stream"}


def send(client: httpx.Client) -> httpx.Response:
    return client.post(SCORE, content=encode(part(0)), headers=BYTES)


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(self: Scan, images: Any) -> Any:
        raise error

    monkeypatch.setattr(Scan, "look", look)


def test_healthy_and_ready(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"healthy": True}
    expected = {"ready": True, "categories": [{"category": CATEGORY, "state": "ready", "version": 1}]}
    assert client.get("/readyz").json() == expected


def test_categories(client: httpx.Client, detector: Detector) -> None:
    summary = {"category": CATEGORY, "state": "ready", "version": 1}
    assert client.get("/v1/categories").json() == {"categories": [summary]}
    details = client.get(f"/v1/categories/{CATEGORY}").json()
    assert details.items() >= summary.items()
    point = detector.operating_point
    assert details["detector"]["operating_point"]["image_threshold"] == point.image_threshold
    assert [member["samples"] for member in details["detector"]["members"]] == [512]


def test_metrics_count(client: httpx.Client) -> None:
    route = "/v1/categories/{category}/score"
    before = metric(client, "plumbline_requests_total", route=route, method="POST", status="200")
    verdicts = metric(
        client, "plumbline_verdicts_total", category=CATEGORY, version="1", verdict="good", output="score"
    )
    scored = metric(client, "plumbline_stage_seconds_count", stage="score")
    unmatched = metric(client, "plumbline_requests_total", route="unmatched", status="404")
    assert send(client).json()["verdict"] == "good"
    client.get("/no/such/page")
    client.request("INVENTED", "/v1/categories")
    assert metric(client, "plumbline_requests_total", route=route, method="POST", status="200") == before + 1
    assert metric(client, "plumbline_verdicts_total", verdict="good", output="score") == verdicts + 1
    assert metric(client, "plumbline_stage_seconds_count", stage="score") == scored + 1
    assert metric(client, "plumbline_requests_total", route="unmatched", status="404") == unmatched + 1
    assert metric(client, "plumbline_requests_total", method="INVENTED") == 0
    assert metric(client, "plumbline_requests_total", method="other", status="405") >= 1
    assert metric(client, "plumbline_model_loaded", category=CATEGORY, version="1") == 1
    assert metric(client, "plumbline_worker_up") == 1
    assert metric(client, "plumbline_queue_depth") == 0


def test_without_models_it_lives_but_is_not_ready(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path) as client:
        assert "no category" in client.get("/readyz").json()["reason"]
        assert client.get("/readyz").status_code == 503
        assert client.get("/readyz").json()["ready"] is False
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/categories").json() == {"categories": []}
        assert_problem(send(client), 404, "unknown-category", "none")


def empty_artifact(folder: Path, version: int) -> None:
    """An artifact that is whole, but has none of the files that its configuration needs."""
    point = {"image_threshold": 1, "pixel_threshold": 1, "false_reject_rate": 0.1}
    write_manifest(
        folder,
        category="odd",
        version=version,
        configuration={"detector": {}, "operating_point": point},  # type: ignore[dict-item]
        geometry=ScanGeometry(),
        data_fingerprint="0" * 64,
    )


def test_damaged_artifact_is_reported_and_the_others_serve(serve: Serve, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for name in ("broken", CATEGORY, "unset"):
        store.publish(name, make_detector(name).save, activate=name != "unset")
    encoder = store.folder("broken", 1) / "encoder.safetensors"
    encoder.chmod(0o644)
    data = bytearray(encoder.read_bytes())
    data[-1] ^= 1
    encoder.write_bytes(data)
    store.publish("odd", empty_artifact)
    with serve(tmp_path) as client:
        states = {entry["category"]: entry for entry in client.get("/readyz").json()["categories"]}
        assert states[CATEGORY]["state"] == "ready"
        assert states["broken"]["state"] == "failed"
        assert "encoder.safetensors" in states["broken"]["reason"]
        assert "active" in states["unset"]["reason"]
        assert states["odd"]["state"] == "failed"
        assert "encoder.safetensors" in states["odd"]["reason"]
        assert client.get("/v1/categories/broken").json()["state"] == "failed"
        assert send(client).status_code == 200
        response = client.post("/v1/categories/broken/score", content=encode(part(0)), headers=BYTES)
        assert_problem(response, 503, "category-unavailable", "encoder.safetensors")
        assert metric(client, "plumbline_model_loaded", category="broken") == 0


def test_answers_while_it_loads(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_worker(monkeypatch) as gate, serve(models, loaded=False) as client:
        assert gate.entered.wait(60)  # by the warm-up image
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.get("/readyz").json()["reason"] == "models are still being loaded"
        response = send(client)
        assert_problem(response, 503, "category-unavailable", "loaded")
        assert int(response.headers["retry-after"]) >= 1
        gate.open.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert send(client).status_code == 200


def test_full_queue_is_refused(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(models, queue_size=2) as client, held_worker(monkeypatch) as gate, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(send, client)]
        assert gate.entered.wait(60)
        waiting += [pool.submit(send, client) for _ in range(2)]
        wait_until(lambda: metric(client, "plumbline_queue_depth") == 2)
        response = send(client)
        assert_problem(response, 503, "queue-full")
        assert int(response.headers["retry-after"]) >= 1
        assert post_head(client, SCORE, 1000).startswith("HTTP/1.1 503 ")  # before the body is read
        assert client.get("/healthz").status_code == 200
        gate.open.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
        assert send(client).status_code == 200


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access was encountered"), SystemExit(1)], ids=["cuda", "exit"]
)
def test_dead_worker_is_not_healthy(
    serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with serve(models) as client:
        fail_with(error, monkeypatch)
        assert_problem(send(client), 503, "worker-unavailable", type(error).__name__)
        assert client.get("/healthz").status_code == 503
        assert client.get("/healthz").json()["healthy"] is False
        assert client.get("/readyz").status_code == 503
        assert metric(client, "plumbline_worker_up") == 0
        assert_problem(send(client), 503, "worker-unavailable")


def test_dead_worker_answers_those_who_wait(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = threading.Event(), threading.Event()

    def look(self: Scan, images: Any) -> Any:
        entered.set()
        assert release.wait(60)
        raise RuntimeError("CUDA error: device-side assert triggered")

    with serve(models) as client, ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(Scan, "look", look)
        waiting = [pool.submit(send, client)]
        assert entered.wait(60)
        waiting += [pool.submit(send, client) for _ in range(2)]
        wait_until(lambda: metric(client, "plumbline_queue_depth") == 2)
        release.set()
        for one in waiting:
            assert_problem(one.result(), 503, "worker-unavailable")


def test_hung_worker_is_not_healthy_until_it_moves_on(
    serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(models, request_timeout_s=5, hang_timeout_s=5) as client, held_worker(monkeypatch) as gate:
        assert_problem(send(client), 504, "deadline-exceeded", "5 s")
        wait_until(lambda: client.get("/healthz").status_code == 503)
        assert "hangs" in client.get("/healthz").json()["reason"]
        assert_problem(send(client), 503, "worker-unavailable", "hangs")
        gate.open.set()
        wait_until(lambda: client.get("/healthz").status_code == 200)
        assert send(client).status_code == 200


def test_failing_score_is_an_internal_error_and_no_more(
    serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(models) as client:
        with monkeypatch.context() as patch:
            fail_with(ValueError("the secret inside"), patch)
            response = send(client)
        problem = assert_problem(response, 500, "internal-error")
        assert "secret" not in response.text
        logged = [record for record in caplog.records if record.exc_info]
        assert [getattr(record, "fields", {})["id"] for record in logged] == [problem["instance"].split(":")[-1]]
        assert client.get("/healthz").status_code == 200
        assert send(client).status_code == 200
        assert metric(client, "plumbline_requests_total", status="500") == 1


def test_image_of_a_client_that_left_is_not_scored(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(part(0))
    head = f"POST {SCORE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(data)}\r\n\r\n"
    with serve(models) as client, held_worker(monkeypatch) as gate, ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, client)
        assert gate.entered.wait(60)
        address = (client.base_url.host, client.base_url.port or 0)
        with socket.create_connection(address) as leaving:
            leaving.sendall(head.encode() + data)
            wait_until(lambda: metric(client, "plumbline_queue_depth") == 1)
        wait_until(lambda: metric(client, "plumbline_requests_total", status="499") == 1)
        gate.open.set()
        assert first.result().status_code == 200
        assert send(client).status_code == 200
        assert gate.images == 2


def test_upload_that_never_ends(serve: Serve, models: Path) -> None:
    with (
        serve(models, request_timeout_s=1) as client,
        socket.create_connection((client.base_url.host, client.base_url.port or 0)) as slow,
    ):
        slow.sendall(
            f"POST {SCORE} HTTP/1.1\r\nHost: [::1]\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nx".encode()
        )
        slow.settimeout(30)
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_stopping_finishes_what_is_under_way(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool, held_worker(monkeypatch) as gate:
        gate.open.set()
        with serve(models) as client:
            gate.open.clear()
            gate.entered.clear()
            under_way = pool.submit(
                httpx.post, f"{client.base_url}{SCORE}", content=encode(part(0)), headers=BYTES, timeout=60
            )
            assert gate.entered.wait(60)
            threading.Timer(0.2, gate.open.set).start()
        assert under_way.result().status_code == 200
