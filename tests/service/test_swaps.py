"""Versions are swapped 200 times while clients score: no request fails, and no answer is mixed of two versions."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from models.store import ModelStore
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, encode, make_detector, metric, part, wait_until

PLATE = f"/v1/categories/{CATEGORY}"
SWAPS = 200
CLIENTS = 3


@pytest.mark.slow
def test_swaps_under_load(serve: Serve, tmp_path: Path) -> None:
    """Half of the swaps by the API, half from outside; each loads anew, for only two versions fit into memory."""
    store, image = ModelStore(tmp_path / "models"), part(0)
    body = encode(image)
    detectors = {number: make_detector(random_seed=number) for number in (1, 2, 3)}
    for detector in detectors.values():
        store.publish(CATEGORY, detector.save)
    scores = {number: detector.predict([image])[0].image_score for number, detector in detectors.items()}
    thresholds = {number: detector.operating_point.image_threshold for number, detector in detectors.items()}
    with serve(store.root) as client:
        size = int(metric(client, "plumbline_model_memory_bytes"))

    answers: Counter[int] = Counter()
    done = threading.Event()

    def load(url: httpx.URL) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while not done.is_set():
                response = client.post(f"{PLATE}/score", content=body, headers={"content-type": "image/png"})
                assert response.status_code == 200, response.text
                answer = response.json()
                version = answer["version"]
                assert answer["image_score"] == pytest.approx(scores[version], rel=1e-4), answer
                assert answer["threshold"] == pytest.approx(thresholds[version]), answer
                answers[version] += 1

    def serving(client: httpx.Client) -> int:
        version: int = client.get(PLATE).json()["version"]
        return version

    with (
        serve(store.root, store_poll_s=0.02, model_memory_bytes=int(2.5 * size)) as client,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        loads = [pool.submit(load, client.base_url) for _ in range(CLIENTS)]
        try:
            for swap in range(SWAPS):
                version = swap % 3 + 1
                if swap % 2:
                    response = client.post(f"{PLATE}/activate", json={"version": version})
                    assert response.status_code == 200, response.text
                else:
                    store.activate(CATEGORY, version)
                    wait_until(lambda version=version: serving(client) == version)  # type: ignore[misc]
                assert serving(client) == version
                if swap % 50 == 25:
                    publish_corrupt(store)
                    wait_until(lambda: "reason" in client.get(PLATE).json())
                    assert serving(client) == version
                assert not any(one.done() for one in loads), [one.exception() for one in loads if one.done()]
        finally:
            done.set()
        for one in loads:
            one.result()
        assert metric(client, "plumbline_model_swaps_total") == SWAPS
        assert metric(
            client, "plumbline_requests_total", route=f"{PLATE}/score".replace(CATEGORY, "{category}")
        ) == sum(answers.values())
        assert metric(client, "plumbline_model_failures_total") == SWAPS // 50
        assert metric(client, "plumbline_model_loaded") == 2
    assert answers.keys() == {1, 2, 3}
    assert len(store.activations(CATEGORY)) >= SWAPS


def publish_corrupt(store: ModelStore) -> None:
    """A version that is damaged between publishing and loading, as by a bad disk or half a copy."""
    number = store.publish(CATEGORY, make_detector().save, activate=False)
    file = store.folder(CATEGORY, number) / "bank.faiss"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1000])
    store.activate(CATEGORY, number)
