"""Drift as an operator sees it: a real server that parts are sent to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.detector import Detector
from models.operation import Operations, revised
from models.prediction import Verdict
from models.region_of_interest import RegionOfInterest
from models.store import ModelStore
from service.batch_test import BATCH, BatchTest
from service.drift import QUANTILES, Drift, Scored, Watch, _same_image
from service.drift_file import read_drift
from service.exchangeability import NumberTest
from service.registry import Served
from service.settings import load_settings
from service.telemetry import Telemetry
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, assert_problem, encode, metric, part, wait_until

DRIFT = f"/v1/categories/{CATEGORY}/drift"
BYTES = {"content-type": "application/octet-stream"}
Restarted = Callable[[], AbstractContextManager[httpx.Client]]


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties are broken and batches permuted at random: at the stated rate, one run in a hundred would alarm falsely."""
    monkeypatch.setattr("service.drift.NumberTest", lambda numbers: NumberTest(numbers, random=Random(0)))
    monkeypatch.setattr("service.drift.BatchTest", partial(BatchTest, seed=0))


@pytest.fixture
def server(serve: Serve, models: Path) -> Iterator[httpx.Client]:
    """One of this test's own: others' images would be part of its story."""
    with serve(models) as client:
        yield client


def send(client: httpx.Client, image: NDArray[np.uint8], output: str = "score", **query: str) -> httpx.Response:
    response = client.post(
        f"/v1/categories/{CATEGORY}/{output}", content=encode(image, compress_level=1), headers=BYTES, params=query
    )
    assert response.status_code == 200, response.text
    return response


def smooth(seed: int) -> NDArray[np.uint8]:
    """A part seen by a camera that is out of focus: less noise, lower scores."""
    return (part(seed) // 2 + part(0) // 2).astype(np.uint8)


def test_nothing_seen_yet(server: httpx.Client, detector: Detector) -> None:
    report = server.get(DRIFT).json()
    assert (report["category"], report["version"], report["state"]) == (CATEGORY, 1, "ok")
    assert report["false_alarm_rate"] == 0.01
    below = detector.calibration.image_scores < detector.operating_point.image_threshold
    assert report["scores"] == {"state": "ok", "evidence": 1, "count": 0, "reference": int(below.sum())}
    assert report["window"] == 0
    assert report["quantiles"]["calibration"][2] == pytest.approx(np.median(detector.calibration.image_scores))
    assert "accepted" not in report["quantiles"]


def test_good_parts_are_no_drift_and_are_counted(server: httpx.Client) -> None:
    answers = [send(server, part(seed)).json() for seed in range(100, 130)]
    report = server.get(DRIFT).json()
    accepted = [one["image_score"] for one in answers if one["verdict"] == "good"]
    assert report["state"] == "ok"
    assert report["scores"]["count"] == len(accepted)
    assert report["rejects"]["count"] == report["window"] == 30
    assert report["rejected_share"] == pytest.approx(1 - len(accepted) / 30)
    assert report["quantiles"]["accepted"] == pytest.approx(np.quantile(accepted, report["quantiles"]["levels"]))
    scores = [one["image_score"] for one in answers]
    assert report["quantiles"]["all"] == pytest.approx(np.quantile(scores, report["quantiles"]["levels"]))


def test_changed_scores_come_to_drift_which_stays_until_it_is_begun_anew(server: httpx.Client) -> None:
    for seed in range(200, 240):
        send(server, part(seed))
    assert server.get(DRIFT).json()["scores"]["state"] == "ok"
    began = datetime.now(UTC)
    for seed in range(300, 360):
        send(server, smooth(seed))
    report = server.get(DRIFT).json()
    assert report["state"] == report["scores"]["state"] == "drift"
    assert report["scores"]["change"] in ("lower", "narrower")
    assert report["scores"]["evidence"] >= 100
    assert began <= datetime.fromisoformat(report["scores"]["since"]) <= datetime.now(UTC)
    metrics = server.get("/metrics").text
    assert f'plumbline_drift_state{{category="{CATEGORY}",test="scores"}} 2.0' in metrics
    assert f'plumbline_score_quantile{{category="{CATEGORY}",of="accepted",quantile="0.5"}}' in metrics
    for seed in range(400, 405):
        send(server, part(seed))
    assert server.get(DRIFT).json()["scores"] == report["scores"]

    anew = server.delete(DRIFT).json()
    assert (anew["state"], anew["scores"]["count"], anew["window"]) == ("ok", 0, 0)
    assert f'plumbline_drift_state{{category="{CATEGORY}",test="scores"}} 0.0' in server.get("/metrics").text


def test_a_wave_of_rejects_is_reported_as_such(server: httpx.Client) -> None:
    for seed in range(500, 530):
        send(server, part(seed))
    for seed in range(40):
        send(server, part(seed, defective=True))
    report = server.get(DRIFT).json()
    assert report["rejects"]["state"] == report["state"] == "drift"
    assert report["rejects"]["change"] == "higher"
    assert report["scores"]["state"] == "ok"
    assert report["scores"]["count"] <= 30


def test_an_image_asked_for_in_two_forms_counts_once(server: httpx.Client) -> None:
    for output in ("score", "heatmap", "explain"):
        send(server, part(600), output)
    assert server.get(DRIFT).json()["window"] == 1
    for _ in range(2):  # but a camera that stands still is noticed
        send(server, part(601))
    assert server.get(DRIFT).json()["window"] == 3


def test_scores_that_differ_by_more_than_rounding_are_of_two_images() -> None:
    one = Scored(1.0, Verdict.GOOD, "score")
    assert _same_image(one, Scored(1.000005, Verdict.GOOD, "heatmap"))
    assert not _same_image(one, Scored(1.0001, Verdict.GOOD, "heatmap"))


def test_quantiles_are_of_the_window(serve: Serve, models: Path) -> None:
    with serve(models, drift_window=5) as client:
        scores = [send(client, part(seed)).json()["image_score"] for seed in range(700, 712)]
        report = client.get(DRIFT).json()
    assert report["window"] == 5
    assert report["quantiles"]["all"][2] == pytest.approx(np.median(scores[-5:]))


def test_unknown_category(server: httpx.Client) -> None:
    for method in ("GET", "DELETE"):
        assert_problem(server.request(method, "/v1/categories/none/drift"), 404, "unknown-category", CATEGORY)


class Inspections:
    """The sink of a registry whose active version the test sets."""

    def __init__(self, detector: Detector, models: Path, **settings: Any) -> None:
        self.active = Served(CATEGORY, 1, detector, detector.own_operation)
        registry: Any = SimpleNamespace(active=lambda category: self.active)
        self.drift = Drift(registry, load_settings(models=models, **settings), Telemetry())

    def take(self, served: Served, score: float, verdict: Verdict = Verdict.GOOD) -> None:
        inspection: Any = SimpleNamespace(
            served=served,
            time=datetime.now(UTC),
            submission=SimpleNamespace(output="score"),
            prediction=SimpleNamespace(image_score=score, verdict=verdict, summary=None),
        )
        asyncio.run(self.drift.take(inspection))


def test_another_active_version_begins_anew_and_others_do_not_count(detector: Detector, models: Path) -> None:
    inspections = Inspections(detector, models)
    first, second = inspections.active, replace(inspections.active, version=2)
    inspections.take(first, -1)
    inspections.take(second, -1)
    assert inspections.drift.monitor(CATEGORY).watches["scores"].capital.count == 1
    inspections.active = second
    inspections.take(first, -1)
    assert inspections.drift.monitor(CATEGORY).watches["scores"].capital.count == 0
    inspections.take(second, -1)
    assert inspections.drift.monitor(CATEGORY).watches["scores"].capital.count == 1


def test_what_is_for_review_is_not_what_good_parts_look_like(detector: Detector, models: Path) -> None:
    scores = np.sort(detector.calibration.image_scores)
    assert scores[2] < scores[3]
    own = detector.own_operation
    point = own.operating_point.model_copy(update={"review_band": (float(scores[3]), float(scores[-1]))})
    inspections = Inspections(detector, models)
    inspections.active = replace(
        inspections.active, operation=own.model_copy(update={"number": 1, "operating_point": point})
    )
    watch = inspections.drift.monitor(CATEGORY).watches["scores"]
    assert watch.reference == 3
    for score, count in ((scores[3], 0), (scores[2], 1)):
        inspections.take(inspections.active, float(score))
        assert watch.capital.count == count


def test_scores_are_compared_with_the_calibrations_in_the_region_of_interest(detector: Detector, models: Path) -> None:
    mask = np.zeros((8, 8), np.bool_)
    mask[:, :3] = True
    region = RegionOfInterest.of_mask(mask)
    inspections = Inspections(detector, models)
    operation = detector.own_operation.model_copy(update={"number": 1, "region_of_interest": region})
    inspections.active = replace(inspections.active, operation=operation)
    expected = detector.calibration_for(region).image_scores
    assert (expected != detector.calibration.image_scores).any()
    quantiles = inspections.drift.monitor(CATEGORY).quantiles()["calibration"]
    assert quantiles == pytest.approx(np.quantile(expected, QUANTILES))


def test_warning_passes_and_drift_does_not() -> None:
    capital = SimpleNamespace(evidence=1.0)
    watch = Watch(capital, 0, 0.01)  # type: ignore[arg-type]
    for evidence, state in ((9.0, "ok"), (50.0, "warning"), (1.0, "ok"), (100.0, "drift"), (0.0, "drift")):
        capital.evidence = evidence
        watch.look(datetime.now(UTC))
        assert watch.state == state
        assert (watch.since is None) is (state == "ok")
    assert watch.over


def test_images_of_another_light_come_to_drift_by_their_embeddings(server: httpx.Client) -> None:
    """Parts whose colour changes; batch by batch, compared off the request's path."""

    def count() -> int:
        found: int = server.get(DRIFT).json()["embeddings"]["count"]
        return found

    for batch in range(2):
        for seed in range(BATCH):
            send(server, part(1000 + BATCH * batch + seed))
    wait_until(lambda: count() >= 1)
    report = server.get(DRIFT).json()
    assert report["embeddings"]["state"] == "ok"
    assert abs(report["squared_mmd"]) < 0.2
    monitor = report["embeddings"]["count"]
    for seed in range(4 * BATCH):
        if server.get(DRIFT).json()["embeddings"]["state"] == "drift":
            break
        dim = (part(2000 + seed) * 0.97).astype(np.uint8)
        send(server, dim)
    wait_until(lambda: count() > monitor)
    report = server.get(DRIFT).json()
    assert report["embeddings"]["state"] == "drift"
    assert report["embeddings"]["change"] == "other"
    assert report["squared_mmd"] > 0.2
    assert f'plumbline_drift_state{{category="{CATEGORY}",test="embeddings"}} 2.0' in server.get("/metrics").text


class TestRestart:
    """What is known outlives the process, in the folder of records."""

    @pytest.fixture
    def restarted(self, serve: Serve, models: Path, tmp_path: Path) -> Restarted:
        return lambda: serve(models, records=tmp_path / "records")

    def test_an_alarm_stays(self, restarted: Restarted) -> None:
        with restarted() as client:
            for seed in range(200, 240):
                send(client, part(seed))
            for seed in range(300, 360):
                send(client, smooth(seed))
            before = client.get(DRIFT).json()
            assert before["scores"]["state"] == "drift"
        with restarted() as client:
            # Prometheus must not see it end.
            assert metric(client, "plumbline_drift_state", category=CATEGORY, test="scores") == 2
            after = client.get(DRIFT).json()
            for report in (before, after):  # a batch may have been compared in between
                del report["embeddings"]
                report.pop("squared_mmd", None)
            assert after == before
            client.delete(DRIFT)
        with restarted() as client:
            report = client.get(DRIFT).json()
            assert (report["state"], report["scores"]["count"], report["window"]) == ("ok", 0, 0)

    def test_evidence_goes_on(self, restarted: Restarted) -> None:
        """Of a service that starts every day, too."""
        for day in range(3):
            with restarted() as client:
                for seed in range(400 + 11 * day, 400 + 11 * day + 11):
                    send(client, part(seed))
                report = client.get(DRIFT).json()
        assert report["rejects"]["count"] == report["window"] == 33
        accepted = round(33 * (1 - report["rejected_share"]))
        assert report["embeddings"]["count"] == (accepted >= BATCH)

    def test_another_operation_begins_anew(self, serve: Serve, detector: Detector, tmp_path: Path) -> None:
        store = ModelStore(tmp_path / "models")
        store.publish(CATEGORY, detector.save)
        with serve(store.root, records=tmp_path / "records") as client:
            send(client, part(500))
            assert client.get(DRIFT).json()["window"] == 1
        Operations(store).record(detector, lambda before: revised(detector, before, author="a", rate=0.2))
        with serve(store.root, records=tmp_path / "records") as client:
            report = client.get(DRIFT).json()
            assert (report["operation"], report["window"]) == (1, 0)

    def test_it_is_stored_while_the_service_runs(
        self, serve: Serve, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.drift._STORE_EVERY_S", 0.05)
        with serve(models, records=tmp_path) as client:
            for seed in range(3):
                send(client, part(seed))
            wait_until(lambda: [len(one.known.window) for one in read_drift(tmp_path / "drift").values()] == [3])

    def test_a_damaged_file_is_told_and_begins_anew(
        self, restarted: Restarted, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with restarted() as client:
            send(client, part(0))
        [file] = (tmp_path / "records" / "drift").iterdir()
        whole = file.read_bytes()
        for content, reason in (
            (b"", "not read"),
            (whole[:-10], "not read"),
            (whole.replace(b'\\"format\\":1', b'\\"format\\":2'), "not read"),
            (whole.replace(b'"rejects":{"dtype"', b'"rejectz":{"dtype"'), "not taken up"),
        ):
            assert content != whole
            file.write_bytes(content)
            caplog.clear()
            with restarted() as client:
                assert client.get(DRIFT).json()["window"] == 0
            assert reason in caplog.text

    def test_what_cannot_be_written_is_told_once(
        self,
        serve: Serve,
        models: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("service.drift._STORE_EVERY_S", 0.05)
        (tmp_path / "drift").write_text("a file, where a folder should be")
        with serve(models, records=tmp_path) as client:
            for seed in range(3):
                send(client, part(seed))
                wait_until(lambda: "drift watch not stored" in caplog.text)
            (tmp_path / "drift").unlink()
            wait_until(lambda: bool(read_drift(tmp_path / "drift")))
        assert caplog.text.count("drift watch not stored") == 1
