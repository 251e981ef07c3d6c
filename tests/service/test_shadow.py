"""A shadow scores what the active version has scored, is recorded, and is in nobody's way."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.detector import Detector
from models.operation import Operations
from models.store import ModelStore
from tests.service.conftest import Serve
from tests.service.support import (
    CATEGORY,
    answer_of,
    assert_problem,
    encode,
    held_worker,
    metric,
    part,
    publish_versions,
    wait_until,
)

PLATE = f"/v1/categories/{CATEGORY}"
GOOD, DEFECTIVE = part(0), part(1, defective=True)


@pytest.fixture
def store(tmp_path: Path, detectors: list[Detector]) -> ModelStore:
    """Version 1 of three is active."""
    return publish_versions(tmp_path / "models", detectors)


def score(client: httpx.Client, image: Any, **params: Any) -> dict[str, Any]:
    headers = {"content-type": "image/png"}
    return answer_of(client.post(f"{PLATE}/score", content=encode(image), params=params, headers=headers))


def scored(client: httpx.Client) -> float:
    return metric(client, "plumbline_shadow_verdicts_total", category=CATEGORY, version="2")


def test_the_shadow_is_compared(serve: Serve, store: ModelStore, detectors: list[Detector], tmp_path: Path) -> None:
    folder = tmp_path / "records"
    with serve(store.root, records=folder) as client:
        score(client, GOOD)
        response = client.put(f"{PLATE}/shadow", json={"version": 2})
        assert [one["version"] for one in response.json()["versions"] if one["shadow"]] == [2]
        assert store.shadow(CATEGORY) == 2
        assert client.get(PLATE).json()["shadow"] == 2
        answers = [score(client, image, part=f"p{n}") for n, image in enumerate((part(101), DEFECTIVE))]
        assert [answer["version"] for answer in answers] == [1, 1]
        wait_until(lambda: scored(client) == 2)
        score(client, GOOD, version=3)  # not the active version: there is nothing to compare
        shadows = [detectors[1].predict([image])[0] for image in (part(101), DEFECTIVE)]
        for answer, shadow in zip(answers, shadows, strict=True):
            labels = {"verdict": shadow.verdict.value, "answered": answer["verdict"]}
            assert metric(client, "plumbline_shadow_verdicts_total", **labels) >= 1
        difference = sum(
            shadow.image_score - answer["image_score"] for shadow, answer in zip(shadows, answers, strict=True)
        )
        told = metric(client, "plumbline_shadow_score_difference_sum", version="2")
        assert told == pytest.approx(difference, rel=1e-4)
        assert metric(client, "plumbline_shadow_p_value_difference_count", version="2") == 2
        higher = [shadow.p_value > answer["p_value"] for shadow, answer in zip(shadows, answers, strict=True)]
        not_above_0 = metric(client, "plumbline_shadow_p_value_difference_bucket", version="2", le="0.0")
        assert (higher, not_above_0) == ([True, False], 1)
        assert client.delete(f"{PLATE}/shadow").status_code == 200
        assert store.shadow(CATEGORY) is None
        score(client, GOOD)
        assert metric(client, "plumbline_verdicts_total", version="2") == 0  # answers only
    with sqlite3.connect(folder / "records.sqlite") as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM inspections ORDER BY time")]
    assert len(rows) == 7
    recorded = {row["part"]: row for row in rows if row["shadow_of"] is not None}
    for n, (answer, shadow) in enumerate(zip(answers, shadows, strict=True)):
        row = recorded[f"p{n}"]
        assert row["shadow_of"].replace("-", "") == answer["id"].replace("-", "")
        assert row["version"] == 2
        assert row["image_score"] == pytest.approx(shadow.image_score, rel=1e-5)
        assert row["verdict"] == shadow.verdict


def test_a_shadow_decides_by_its_own_operation(serve: Serve, store: ModelStore) -> None:
    detector = Detector.load(store.folder(CATEGORY, 2), "cpu")
    point = detector.operating_point.model_copy(update={"image_threshold": -99.0})
    Operations(store).record(detector, lambda before: before.model_copy(update={"operating_point": point}))
    store.set_shadow(CATEGORY, 2)
    with serve(store.root) as client:
        assert score(client, GOOD)["verdict"] == "good"
        wait_until(lambda: scored(client) == 1)
        assert metric(client, "plumbline_shadow_verdicts_total", verdict="defective", answered="good") == 1


def test_a_shadow_holds_on_to_no_image(serve: Serve, store: ModelStore) -> None:
    store.set_shadow(CATEGORY, 2)
    with serve(store.root) as client:
        score(client, GOOD)
        wait_until(lambda: scored(client) == 1)
        wait_until(lambda: metric(client, "plumbline_queue_bytes") == 0, seconds=20)


def test_a_shadow_from_outside_and_what_ends_it(serve: Serve, store: ModelStore) -> None:
    store.set_shadow(CATEGORY, 2)
    with serve(store.root, store_poll_s=0.05) as client:
        assert client.get(PLATE).json()["shadow"] == 2
        store.set_shadow(CATEGORY, 3)
        wait_until(lambda: client.get(PLATE).json()["shadow"] == 3)
        store.activate(CATEGORY, 3)  # active, it is the shadow no longer
        wait_until(lambda: client.get(PLATE).json()["version"] == 3)
        wait_until(lambda: "shadow" not in client.get(PLATE).json())
        assert_problem(client.put(f"{PLATE}/shadow", json={"version": 3}), 409, "version-in-use", "active")
        assert client.put(f"{PLATE}/shadow", json={"version": 1}).status_code == 200
        assert client.post(f"{PLATE}/activate", json={"version": 1}).status_code == 200
        assert "shadow" not in client.get(PLATE).json()
        assert store.shadow(CATEGORY) is None


def test_a_shadow_that_cannot_be_loaded_is_told(serve: Serve, store: ModelStore) -> None:
    manifest = store.folder(CATEGORY, 2) / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text(json.dumps({}))
    with serve(store.root, store_poll_s=0.05) as client:
        assert_problem(client.put(f"{PLATE}/shadow", json={"version": 2}), 409, "version-unavailable", "manifest")
        assert store.shadow(CATEGORY) is None
        store.set_shadow(CATEGORY, 2)
        wait_until(lambda: "there is no shadow" in client.get(PLATE).json().get("reason", ""))
        assert score(client, GOOD)["version"] == 1
        assert "warning" in client.get("/readyz").json()
        store.set_shadow(CATEGORY, None)
        wait_until(lambda: "reason" not in client.get(PLATE).json())


def test_a_busy_worker_drops_shadows_and_answers(
    serve: Serve, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_shadow(CATEGORY, 2)
    monkeypatch.setattr("service.shadow._PATIENCE_S", 0.05)
    with serve(store.root) as client, ThreadPoolExecutor(8) as pool:
        with held_worker(monkeypatch) as gate:
            first = pool.submit(score, client, GOOD)
            assert gate.entered.wait(60)
            others = [pool.submit(score, client, part(seed)) for seed in range(7)]
            wait_until(lambda: metric(client, "plumbline_queue_depth") == 7)
            gate.open.set()
            assert all(one.result()["version"] == 1 for one in (first, *others))
        wait_until(lambda: scored(client) + metric(client, "plumbline_shadow_dropped_total") == 8)
        assert metric(client, "plumbline_verdicts_total", version="1") == 8
