"""Several versions at once: which one scores, changing that through the API and from outside, and what goes wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.artifact import verify
from models.detector import Detector
from models.store import ModelStore
from tests.service.conftest import Serve
from tests.service.support import (
    CATEGORY,
    answer_of,
    assert_problem,
    encode,
    held_worker,
    make_detector,
    metric,
    part,
    publish_versions,
    wait_until,
)

PLATE = f"/v1/categories/{CATEGORY}"
IMAGE = part(0)
BODY = encode(IMAGE)
BYTES = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def scores(detectors: list[Detector]) -> dict[int, float]:
    """Of IMAGE, by version."""
    found = {number: detector.predict([IMAGE])[0].image_score for number, detector in enumerate(detectors, 1)}
    assert len({round(score, 4) for score in found.values()}) == 3
    return found


@pytest.fixture
def store(tmp_path: Path, detectors: list[Detector]) -> ModelStore:
    """Version 1 of three is active."""
    return publish_versions(tmp_path / "models", detectors)


def score(client: httpx.Client, version: int | None = None, category: str = CATEGORY) -> dict[str, Any]:
    return answer_of(ask(client, version, category))


def ask(client: httpx.Client, version: int | None = None, category: str = CATEGORY) -> httpx.Response:
    params = {} if version is None else {"version": version}
    return client.post(f"/v1/categories/{category}/score", content=BODY, params=params, headers=BYTES)


def states(client: httpx.Client) -> dict[int, str]:
    return {entry["version"]: entry["state"] for entry in client.get(f"{PLATE}/versions").json()["versions"]}


def shown(client: httpx.Client, category: str = CATEGORY) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/categories/{category}").json()
    return found


def damage(store: ModelStore, version: int) -> Callable[[], None]:
    """Turn one bit of a published file; gives what turns it back."""
    file = store.folder(CATEGORY, version) / "encoder.safetensors"
    file.chmod(0o644)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def mend() -> None:
        file.write_bytes(content)

    return mend


def test_a_version_by_its_number(serve: Serve, store: ModelStore, scores: dict[int, float]) -> None:
    with serve(store.root) as client:
        assert states(client) == {1: "loaded", 2: "stored", 3: "stored"}
        for version in (2, 1, None, 3, 2):
            answer = score(client, version)
            assert answer["version"] == (version or 1)
            assert answer["image_score"] == pytest.approx(scores[version or 1], rel=1e-5)
        assert states(client) == {1: "loaded", 2: "loaded", 3: "loaded"}
        for kind in ("heatmap", "explain"):
            response = client.post(f"{PLATE}/{kind}", content=BODY, params={"version": 3}, headers=BYTES)
            assert response.headers["x-plumbline-version"] == "3"
        assert_problem(ask(client, 4), 404, "unknown-version", "has no version 4; there is 1, 2, 3")
        for wrong in ("0", "-1", "x", "1" * 19, ""):
            assert_problem(client.post(f"{PLATE}/score?version={wrong}", content=BODY), 422, "invalid-request")


def test_list_of_versions(serve: Serve, store: ModelStore) -> None:
    damage(store, 2)
    (store.folder(CATEGORY, 3) / "manifest.json").unlink()
    with serve(store.root) as client:
        for _ in range(3):
            assert_problem(ask(client, 2), 409, "version-unavailable", "encoder.safetensors")
        assert metric(client, "plumbline_model_failures_total") == 1  # its files, unchanged, are not read again
        third, second, first = client.get(f"{PLATE}/versions").json()["versions"]
        assert (first["active"], first["served"], first["shadow"]) == (True, True, False)
        assert first["memory_bytes"] > 100_000
        assert first["memory_bytes"] == metric(client, "plumbline_model_memory_bytes", version="1")
        assert datetime.fromisoformat(first["created"]).tzinfo is not None
        assert (second["state"], second["active"], "memory_bytes" in second) == ("failed", False, False)
        assert "encoder.safetensors" in second["reason"]
        assert (third["state"], third.get("created")) == ("stored", None)
        assert_problem(client.get("/v1/categories/cable/versions"), 404, "unknown-category")


def test_activate_and_roll_back(serve: Serve, store: ModelStore, scores: dict[int, float]) -> None:
    with serve(store.root, store_poll_s=3600) as client:
        for version in (2, 3):
            response = client.post(f"{PLATE}/activate", json={"version": version})
            assert response.status_code == 200, response.text
            assert [one["version"] for one in response.json()["versions"] if one["served"]] == [version]
            assert score(client)["image_score"] == pytest.approx(scores[version], rel=1e-5)
            assert store.active(CATEGORY) == version
        for version in (2, 1):
            assert client.post(f"{PLATE}/rollback").status_code == 200
            assert score(client)["version"] == store.active(CATEGORY) == version
        assert_problem(client.post(f"{PLATE}/rollback"), 409, "no-earlier-version")
        history = client.get(f"{PLATE}/activations").json()["activations"]
        assert [(one["version"], one["author"], one["rollback"]) for one in history] == [
            (1, "anonymous", True),
            (2, "anonymous", True),
            (3, "anonymous", False),
            (2, "anonymous", False),
            (1, "trainer", False),
        ]
        assert metric(client, "plumbline_model_swaps_total") == 4


@pytest.mark.parametrize("body", [{}, {"version": 0}, {"version": "x"}, {"version": 1, "more": 1}, []])
def test_activate_takes_a_version_only(client: httpx.Client, body: Any) -> None:
    for method, path in (("POST", "activate"), ("PUT", "shadow")):
        assert_problem(client.request(method, f"{PLATE}/{path}", json=body), 422, "invalid-request")


def test_what_cannot_be_activated_changes_nothing(serve: Serve, store: ModelStore) -> None:
    mend = damage(store, 2)
    with serve(store.root, store_poll_s=3600) as client:
        assert_problem(
            client.post(f"{PLATE}/activate", json={"version": 2}), 409, "version-unavailable", "encoder.safetensors"
        )
        assert_problem(client.post(f"{PLATE}/activate", json={"version": 9}), 404, "unknown-version")
        assert_problem(client.post("/v1/categories/cable/activate", json={"version": 1}), 404, "unknown-category")
        assert store.active(CATEGORY) == 1
        assert [entry.version for entry in store.activations(CATEGORY)] == [1]
        assert score(client)["version"] == 1
        assert "reason" not in shown(client)
        assert metric(client, "plumbline_model_failures_total", category=CATEGORY) == 1
        mend()
        assert client.post(f"{PLATE}/activate", json={"version": 2}).status_code == 200
        assert score(client)["version"] == 2


def test_a_store_that_the_service_may_not_write_to(serve: Serve, store: ModelStore, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    if os.getuid() or subprocess.run(["mount", "--bind", "-o", "ro", store.root, mount], check=False).returncode:
        pytest.skip("only root may mount, and not everywhere")
    try:
        with serve(mount, store_poll_s=0.05) as client:
            for request in (
                client.build_request("POST", f"{PLATE}/activate", json={"version": 2}),
                client.build_request("PUT", f"{PLATE}/shadow", json={"version": 2}),
                client.build_request("DELETE", f"{PLATE}/shadow"),
            ):
                assert_problem(client.send(request), 409, "store-read-only", "plumbline models")
            assert states(client)[2] == "stored"  # refused before it was loaded
            assert shown(client)["version"] == 1
            store.activate(CATEGORY, 2)  # from outside
            wait_until(lambda: shown(client)["version"] == 2)
            assert_problem(client.post(f"{PLATE}/rollback"), 409, "store-read-only")
    finally:
        subprocess.run(["umount", mount], check=True)


def test_the_store_is_followed(serve: Serve, store: ModelStore, detectors: list[Detector]) -> None:
    with serve(store.root, store_poll_s=0.05) as client:
        store.activate(CATEGORY, 3)
        wait_until(lambda: shown(client)["version"] == 3)
        assert score(client)["version"] == 3
        store.publish(CATEGORY, detectors[0].save)
        wait_until(lambda: shown(client)["version"] == 4)
        assert "cable" not in client.get("/v1/categories").text
        store.publish("cable", make_detector("cable").save)
        wait_until(lambda: "cable" in client.get("/v1/categories").text and shown(client, "cable")["state"] == "ready")
        assert score(client, category="cable")["version"] == 1
        watched = 'plumbline_drift_state{category="cable"'
        assert watched in client.get("/metrics").text
        shutil.rmtree(store.root / "cable")
        wait_until(lambda: client.get("/v1/categories/cable").status_code == 404)
        assert_problem(ask(client, category="cable"), 404, "unknown-category")
        assert metric(client, "plumbline_model_loaded", category="cable") == 0
        assert watched not in client.get("/metrics").text
        # A version that is not served goes with its folder; its number does not come back.
        shutil.rmtree(store.folder(CATEGORY, 3))
        wait_until(lambda: states(client).keys() == {1, 2, 4} and metric(client, "plumbline_model_loaded") == 2)
        assert_problem(ask(client, 3), 404, "unknown-version")


def test_a_category_that_was_made_anew_under_the_same_numbers(
    serve: Serve, store: ModelStore, detectors: list[Detector], scores: dict[int, float], tmp_path: Path
) -> None:
    other = ModelStore(tmp_path / "other")
    other.publish(CATEGORY, detectors[1].save)
    with serve(store.root, store_poll_s=0.05) as client:
        assert score(client)["image_score"] == pytest.approx(scores[1], rel=1e-5)
        (store.root / CATEGORY).rename(tmp_path / "old")
        (other.root / CATEGORY).rename(store.root / CATEGORY)
        wait_until(lambda: client.get(PLATE).is_success and ask(client).is_success)
        wait_until(lambda: bool(score(client)["image_score"] == pytest.approx(scores[2], rel=1e-5)))
        drift = client.get(f"{PLATE}/drift").json()["quantiles"]
        calibration = np.quantile(detectors[1].calibration.image_scores, drift["levels"])
        assert drift["calibration"] == pytest.approx(calibration.tolist())


def test_a_version_published_corrupt_is_refused_and_the_old_one_goes_on(
    serve: Serve, store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(store.root, store_poll_s=0.05) as client:
        mend = damage(store, 2)
        store.activate(CATEGORY, 2)
        wait_until(lambda: "reason" in shown(client))
        entry = shown(client)
        assert (entry["state"], entry["version"]) == ("ready", 1)
        assert "version 1 goes on serving, because version 2 could not be loaded" in entry["reason"]
        assert "encoder.safetensors" in entry["reason"]
        assert score(client)["version"] == 1
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert "1 of the categories" in ready.json()["warning"]
        wait_until(lambda: metric(client, "plumbline_model_problem", category=CATEGORY) == 1)
        told = [record for record in caplog.records if record.getMessage() == "model not loaded"]
        wait_until(lambda: metric(client, "plumbline_model_failures_total") == 1)
        assert [getattr(record, "fields", {})["category"] for record in told] == [CATEGORY]  # once, not every look
        mend()
        wait_until(lambda: shown(client)["version"] == 2)
        assert "warning" not in client.get("/readyz").json()
        wait_until(lambda: metric(client, "plumbline_model_problem", category=CATEGORY) == 0)
        # What is served is in memory: damaging its files harms the next start, which is told now.
        damage(store, 2)
        wait_until(lambda: "version 2 goes on serving" in shown(client).get("reason", ""))
        assert score(client)["version"] == 2
        store.activate(CATEGORY, 1)
        wait_until(lambda: shown(client)["version"] == 1)
        assert "reason" not in shown(client)


@pytest.mark.parametrize("emptied", [False, True], ids=["gone", "not mounted"])
def test_the_store_goes_and_comes_back(serve: Serve, store: ModelStore, tmp_path: Path, emptied: bool) -> None:
    with serve(store.root, store_poll_s=0.05) as client:
        store.root.rename(tmp_path / "away")
        if emptied:
            store.root.mkdir()
        wait_until(lambda: metric(client, "plumbline_model_store_up") == 0)
        assert score(client)["version"] == 1
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert "store" in ready.json()["warning"]
        assert str(store.root) in client.get("/v1/categories").json()["store_problem"]
        response = ask(client, 2)
        assert response.status_code == (404 if emptied else 503), response.text
        if not emptied:
            assert_problem(response, 503, "store-unavailable")
            assert_problem(client.get(f"{PLATE}/versions"), 503, "store-unavailable")
            assert_problem(client.post(f"{PLATE}/activate", json={"version": 2}), 503, "store-unavailable")
        if emptied:
            store.root.rmdir()
        (tmp_path / "away").rename(store.root)
        store.activate(CATEGORY, 3)
        wait_until(lambda: shown(client)["version"] == 3)
        assert metric(client, "plumbline_model_store_up") == 1
        # It may have gone while its operations were read, which are looked at after the versions.
        wait_until(lambda: "warning" not in client.get("/readyz").json())


def test_a_store_that_cannot_be_read_at_the_start_is_served_when_it_can(
    serve: Serve, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose folder belongs to somebody else: no reason for a traceback, nor to be started again."""
    readable, categories = threading.Event(), ModelStore.categories

    def unless_forbidden(self: ModelStore) -> list[str]:
        if not readable.is_set():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))
        return categories(self)

    monkeypatch.setattr(ModelStore, "categories", unless_forbidden)
    with serve(store.root, store_poll_s=0.05) as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the model store cannot be read")
        assert client.get("/healthz").status_code == 200
        assert metric(client, "plumbline_model_store_up") == 0
        problem = client.get("/v1/categories").json()["store_problem"]
        assert str(store.root) in problem
        assert "Permission denied" in problem
        assert_problem(ask(client), 404, "unknown-category", "the model store cannot be read")
        readable.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert score(client)["version"] == 1
        assert metric(client, "plumbline_model_store_up") == 1


def test_a_store_that_does_not_answer_is_told(serve: Serve, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network share whose server is gone: whoever reads it waits."""
    answers, categories = threading.Event(), ModelStore.categories

    def when_it_answers(self: ModelStore) -> list[str]:
        assert answers.wait(120)
        return categories(self)

    monkeypatch.setattr("service.following._SILENT_S", 0.1)
    with serve(store.root, store_poll_s=0.05) as client:
        monkeypatch.setattr(ModelStore, "categories", when_it_answers)
        wait_until(lambda: metric(client, "plumbline_model_store_up") == 0, seconds=60)
        assert "has not answered" in client.get("/v1/categories").json()["store_problem"]
        assert "store" in client.get("/readyz").json()["warning"]
        assert score(client)["version"] == 1
        answers.set()
        wait_until(lambda: metric(client, "plumbline_model_store_up") == 1)


def test_the_least_recently_used_are_unloaded(serve: Serve, store: ModelStore) -> None:
    with serve(store.root) as client:
        size = int(metric(client, "plumbline_model_memory_bytes", version="1"))
    with serve(store.root, model_memory_bytes=int(2.5 * size)) as client:
        for version in (2, 3):
            assert score(client, version)["version"] == version
        assert states(client) == {1: "loaded", 2: "stored", 3: "loaded"}  # the active one stays
        assert client.put(f"{PLATE}/shadow", json={"version": 3}).status_code == 200
        assert_problem(ask(client, 2), 409, "model-memory", "PLUMBLINE_MODEL_MEMORY_BYTES", str(int(2.5 * size)))
        assert_problem(client.post(f"{PLATE}/activate", json={"version": 2}), 409, "model-memory")
        assert states(client) == {1: "loaded", 2: "stored", 3: "loaded"}
        assert store.active(CATEGORY) == 1
        assert client.delete(f"{PLATE}/shadow").status_code == 200
        assert client.post(f"{PLATE}/activate", json={"version": 2}).status_code == 200
        assert states(client) == {1: "loaded", 2: "loaded", 3: "stored"}
        assert metric(client, "plumbline_model_loaded") == 2


def test_categories_over_the_budget_are_refused_one_by_one(serve: Serve, store: ModelStore) -> None:
    for name in ("aaa", "zzz"):
        store.publish(name, make_detector(name).save)
    with serve(store.root) as client:
        size = int(metric(client, "plumbline_model_memory_bytes", category="aaa"))
    with serve(store.root, model_memory_bytes=int(2.5 * size), store_poll_s=0.05) as client:
        assert client.get("/readyz").status_code == 200
        entries = {entry["category"]: entry for entry in client.get("/v1/categories").json()["categories"]}
        assert [entry["state"] for entry in entries.values()] == ["ready", "ready", "failed"]
        assert "PLUMBLINE_MODEL_MEMORY_BYTES" in entries["zzz"]["reason"]
        shutil.rmtree(store.root / "aaa")
        wait_until(lambda: shown(client, "zzz")["state"] == "ready")  # its place is free


def test_loading_does_not_stop_scoring(serve: Serve, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a version is read, and while those who asked for it wait, others are scored."""
    entered, release = threading.Event(), threading.Event()

    def slow(folder: Path) -> Any:
        entered.set()
        assert release.wait(60)
        return verify(folder)

    with serve(store.root) as client:
        monkeypatch.setattr("service.loader.verify", slow)
        threads = [threading.Thread(target=score, args=(client, 2)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            assert entered.wait(60)
            assert score(client)["version"] == 1
            assert states(client)[2] == "loading"
        finally:
            release.set()
        for thread in threads:
            thread.join()
        assert states(client)[2] == "loaded"


def test_a_request_keeps_its_version_to_the_end(
    serve: Serve, store: ModelStore, scores: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the worker while another version becomes active."""
    with serve(store.root, store_poll_s=0.05) as client, ThreadPoolExecutor(2) as pool:
        assert score(client, 2)["version"] == 2  # so that nothing has to be loaded on the held worker
        with held_worker(monkeypatch) as gate:
            waiting = [pool.submit(score, client) for _ in range(2)]
            assert gate.entered.wait(60)
            store.activate(CATEGORY, 2)
            wait_until(lambda: shown(client)["version"] == 2)
            gate.open.set()
            answers = [one.result() for one in waiting]
        assert [answer["version"] for answer in answers] == [1, 1]
        assert all(answer["image_score"] == pytest.approx(scores[1], rel=1e-5) for answer in answers)
        assert score(client)["version"] == 2


def test_a_dead_worker_activates_nothing(serve: Serve, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(store.root) as client:
        monkeypatch.setattr("service.loader._warm", raises(SystemExit(1)))
        for _ in range(2):
            response = client.post(f"{PLATE}/activate", json={"version": 2})
            assert_problem(response, 503, "worker-unavailable")
        assert store.active(CATEGORY) == 1
        assert client.get("/healthz").status_code == 503


def test_a_model_that_fails_unexpectedly_is_refused(
    serve: Serve, store: ModelStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(store.root) as client:
        with monkeypatch.context() as patch:
            patch.setattr("service.loader._warm", raises(RuntimeError("the secret inside")))
            response = client.post(f"{PLATE}/activate", json={"version": 2})
        assert_problem(response, 409, "version-unavailable", "RuntimeError")
        assert "secret" not in response.text
        assert "secret" in caplog.text
        assert score(client)["version"] == 1
        assert client.post(f"{PLATE}/activate", json={"version": 2}).status_code == 200  # asked for, it is tried again


def raises(error: BaseException) -> Callable[..., None]:
    def function(*_: object) -> None:
        raise error

    return function


def test_openapi_names_the_new_routes(client: httpx.Client) -> None:
    paths = json.loads(client.get("/openapi.json").text)["paths"]
    for path, method in (("activate", "post"), ("rollback", "post"), ("shadow", "put"), ("shadow", "delete")):
        operation = paths[f"/v1/categories/{{category}}/{path}"][method]
        assert "store-read-only" in operation["responses"]["409"]["description"]
        assert operation["security"]
