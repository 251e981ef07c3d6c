"""How a version decides, changed over HTTP while it serves: at once, recorded, and true to the rate asked for."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.detector import Detector
from models.operation import Operations, revised
from models.region_of_interest import RegionOfInterest
from models.store import ModelStore
from tests.service.conftest import Serve
from tests.service.support import (
    CATEGORY,
    DEFECT,
    HEIGHT,
    WIDTH,
    answer_of,
    assert_problem,
    encode,
    make_detector,
    part,
    wait_until,
)

PLATE = f"/v1/categories/{CATEGORY}"
OPERATION, REGION = f"{PLATE}/operation", f"{PLATE}/region-of-interest"
DEFECTIVE = encode(part(200, defective=True))
PNG = {"content-type": "image/png"}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "models")
    store.publish(CATEGORY, make_detector().save)
    return store


def mask(*, left: bool) -> NDArray[np.uint8]:
    """Half the image; the defect lies in the right one."""
    picture = np.zeros((40, 64), np.uint8)
    picture[:, np.s_[:36] if left else np.s_[36:]] = 255
    return picture


def score(client: httpx.Client, **query: Any) -> dict[str, Any]:
    return answer_of(client.post(f"{PLATE}/score", params=query, content=DEFECTIVE, headers=PNG))


def change(client: httpx.Client, **values: Any) -> dict[str, Any]:
    operation: dict[str, Any] = answer_of(client.put(OPERATION, json=values))["operation"]
    return operation


# --- thresholds -----------------------------------------------------------------------------------------------------


def test_a_change_holds_for_the_next_request_and_is_recorded(serve: Serve, store: ModelStore) -> None:
    with serve(store.root) as client:
        before = client.get(OPERATION).json()
        assert (before["category"], before["version"], before["operation"]["number"]) == (CATEGORY, 1, 0)
        first = score(client)
        assert (first["operation"], first["verdict"]) == (0, "defective")
        assert first["threshold"] == before["operation"]["image_threshold"]

        high = first["image_score"] + 1
        changed = change(client, image_threshold=high, note="a louder camera")
        assert (changed["number"], changed["author"], changed["note"]) == (1, "anonymous", "a louder camera")
        assert changed["pixel_threshold"] == first["pixel_threshold"]
        assert changed["false_reject_rate"] == pytest.approx(1 / 9)  # the smallest of 8 calibration images
        second = score(client)
        assert (second["operation"], second["verdict"], second["threshold"]) == (1, "good", high)

        banded = change(client, review_band=[first["image_score"] - 1, high + 1])
        assert (banded["number"], banded["image_threshold"]) == (2, high)
        assert score(client)["verdict"] == "review"

        back = change(client, restore=0)
        assert (back["number"], back["restores"]) == (3, 0)
        assert score(client)["threshold"] == first["threshold"]
        history = client.get(OPERATION, params={"history": True}).json()["history"]
        assert [operation["number"] for operation in history] == [3, 2, 1, 0]
        assert history[2] == changed
    with serve(store.root) as client:  # it outlives the process
        assert score(client)["operation"] == 3


def test_thresholds_are_derived_from_a_rate(serve: Serve, store: ModelStore) -> None:
    detector = Detector.load(store.folder(CATEGORY, 1), "cpu")
    with serve(store.root) as client:
        change(client, review_band=[-99, 99])
        changed = change(client, false_reject_rate=0.5)
        expected = detector.calibration.operating_point(0.5)
        assert changed["image_threshold"] == expected.image_threshold
        assert changed["pixel_threshold"] == expected.pixel_threshold
        assert changed["false_reject_rate"] == 0.5
        assert changed["review_band"] is None
        problem = client.put(OPERATION, json={"false_reject_rate": 0.001})
        assert_problem(problem, 422, "invalid-request", "8 calibration images", "hold out more")
        assert score(client)["operation"] == 2


@pytest.mark.parametrize(
    ("body", "mention"),
    [
        ({}, "nothing is changed"),
        ({"note": "only"}, "nothing is changed"),
        ({"threshold": 1}, "threshold"),
        ({"image_threshold": None}, "image_threshold is null"),
        ({"image_threshold": "high"}, "image_threshold"),
        ({"false_reject_rate": 1}, "less than 1"),
        ({"false_reject_rate": 0.5, "image_threshold": 1}, "not both"),
        ({"restore": 0, "image_threshold": 1}, "alone"),
        ({"invalidity_threshold": 0}, "greater than 0"),
        ({"image_threshold": 1, "review_band": [2, 3]}, "does not hold image_threshold"),
        ({"review_band": [1]}, "review_band"),
    ],
    ids=str,
)
def test_what_no_version_can_run_with_is_refused(client: httpx.Client, body: dict[str, Any], mention: str) -> None:
    assert_problem(client.put(OPERATION, json=body), 422, "invalid-request", mention)
    assert client.get(OPERATION).json()["operation"]["number"] == 0


def test_a_nan_is_refused(client: httpx.Client) -> None:
    answer = client.put(OPERATION, content=b'{"image_threshold": NaN}', headers={"content-type": "application/json"})
    assert_problem(answer, 422, "invalid-request", "image_threshold")


def test_what_is_not_there_is_told(client: httpx.Client) -> None:
    assert_problem(client.put(OPERATION, json={"restore": 5}), 404, "unknown-operation", "operation 5", "there is 0")
    assert_problem(client.get("/v1/categories/cable/operation"), 404, "unknown-category", "cable")
    assert_problem(client.get(OPERATION, params={"version": 9}), 404, "unknown-version", "9")
    assert_problem(client.get(REGION), 404, "no-region-of-interest", "all of the image counts")
    assert_problem(client.delete(REGION), 404, "no-region-of-interest")


# --- the region of interest -----------------------------------------------------------------------------------------


def test_a_version_with_another_region_of_interest_is_warned_of(
    serve: Serve, store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish(CATEGORY, make_detector(random_seed=1).save, activate=False)
    store.publish(CATEGORY, make_detector(random_seed=2).save, activate=False)

    def warnings() -> list[dict[str, Any]]:
        records = [record for record in caplog.records if "region of interest is another" in record.message]
        return [vars(record)["fields"] for record in records]

    with serve(store.root) as client:
        assert client.post(f"{PLATE}/activate", json={"version": 2}).status_code == 200
        assert client.put(REGION, content=encode(mask(left=True)), headers=PNG).status_code == 200
        assert warnings() == []
        assert client.post(f"{PLATE}/rollback").status_code == 200
        assert warnings() == [{"category": CATEGORY, "version": 1, "before": 2}]
        assert score(client)["verdict"] == "defective"
        for version in (1, 3):  # for a version before it is active
            answer = client.put(REGION, params={"version": version}, content=encode(mask(left=True)), headers=PNG)
            assert answer.status_code == 200, answer.text
        store.activate(CATEGORY, 3)  # by another process
        wait_until(lambda: score(client)["version"] == 3)
        assert len(warnings()) == 1
        store.activate(CATEGORY, 2)
        assert client.delete(REGION).status_code == 200
        wait_until(lambda: score(client)["version"] == 2)
        assert warnings()[1:] == [{"category": CATEGORY, "version": 2, "before": 3}]


def test_outside_the_region_of_interest_nothing_counts(serve: Serve, store: ModelStore) -> None:
    with serve(store.root) as client:
        everywhere = score(client)
        answer = client.put(REGION, content=encode(mask(left=True)), headers=PNG)
        assert answer.status_code == 200, answer.text
        operation = answer.json()["operation"]
        assert operation["number"] == 1
        assert operation["region_of_interest_share"] == pytest.approx(36 / 64)
        inside = score(client, map=True)
        assert (inside["operation"], inside["verdict"]) == (1, "good")
        edges = [region["box"]["x"] + region["box"]["width"] for region in inside["regions"]]
        assert max(edges, default=0) <= WIDTH * 36 / 64
        assert inside["threshold"] == operation["image_threshold"]

        detector = Detector.load(store.folder(CATEGORY, 1), "cpu")
        region = RegionOfInterest.of_mask(mask(left=True) > 0)
        rate = detector.operating_point.false_reject_rate
        assert operation["image_threshold"] == detector.operating_point_for(rate, region).image_threshold
        assert operation["false_reject_rate"] == rate
        counted = np.array(inside["score_map"])
        assert inside["image_score"] < counted.max() == pytest.approx(everywhere["image_score"], abs=1e-5)

        picture = client.get(REGION)
        assert picture.headers["content-type"] == "image/png"
        shown = cv2.imdecode(np.frombuffer(picture.content, np.uint8), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(shown, mask(left=True))

        assert client.delete(REGION).json()["operation"]["number"] == 2
        assert score(client)["verdict"] == "defective"


def test_the_heatmap_shows_no_colour_outside_and_names_the_operation(serve: Serve, store: ModelStore) -> None:
    with serve(store.root) as client:
        client.put(REGION, content=encode(mask(left=True)), headers=PNG)
        answer = client.post(f"{PLATE}/heatmap", params={"opacity": 1}, content=DEFECTIVE, headers=PNG)
        assert answer.headers["x-plumbline-operation"] == "1"
        picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape == (HEIGHT, WIDTH, 3)
        original = part(200, defective=True)[:, :, ::-1]
        np.testing.assert_array_equal(picture[:, DEFECT.x :], original[:, DEFECT.x :])
        explained = client.post(f"{PLATE}/explain", content=DEFECTIVE, headers=PNG)
        assert explained.headers["x-plumbline-operation"] == "1"
        x, _, width, _ = map(int, explained.headers["x-plumbline-window"].split(","))
        assert x + width / 2 < WIDTH * 36 / 64 + 8  # the window's centre, but for half a stride


def test_another_protocol_decides_by_the_same_operation(serve: Serve, store: ModelStore) -> None:
    with serve(store.root) as client:
        client.put(REGION, content=encode(mask(left=True)), headers=PNG)
        answer = client.post(f"/2020-11-20/projects/{CATEGORY}/models/1/detect", content=DEFECTIVE, headers=PNG)
        assert answer.status_code == 200, answer.text
        assert answer.json()["DetectAnomalyResult"]["IsAnomalous"] is False


@pytest.mark.parametrize(
    ("content", "kind", "status", "slug"),
    [
        (encode(np.zeros((8, 8), np.uint8)), "image/png", 422, "invalid-request"),
        (b"no image", "image/png", 422, "unreadable-image"),
        (encode(np.full((8, 8), 255, np.uint8), "JPEG"), "image/jpeg", 415, "unsupported-image"),
        (b"{}", "application/json", 415, "unsupported-media-type"),
        (encode(np.full((2000, 1001), 255, np.uint8)), "image/png", 413, "image-too-large"),
        (bytes(2**20 + 1), "image/png", 413, "upload-too-large"),
    ],
    ids=["black", "no image", "jpeg", "json", "too many pixels", "too many bytes"],
)
def test_a_mask_that_is_none_is_refused(
    client: httpx.Client, content: bytes, kind: str, status: int, slug: str
) -> None:
    assert_problem(client.put(REGION, content=content, headers={"content-type": kind}), status, slug)
    assert client.get(OPERATION).json()["operation"]["number"] == 0


def test_the_document_offers_no_jpeg_for_a_mask(client: httpx.Client) -> None:
    put = client.get("/openapi.json").json()["paths"]["/v1/categories/{category}/region-of-interest"]["put"]
    assert put["requestBody"]["description"] == "One image, stored without loss: PNG, BMP, TIFF. A JPEG is refused."


# --- versions, others who write, and who may not ---------------------------------------------------------------------


def test_each_version_has_its_own_operations(serve: Serve, store: ModelStore) -> None:
    store.publish(CATEGORY, make_detector(random_seed=1).save, activate=False)
    with serve(store.root) as client:
        answer = client.put(OPERATION, params={"version": 2}, json={"image_threshold": 77})
        assert (answer.json()["version"], answer.json()["operation"]["number"]) == (2, 1)
        assert score(client)["operation"] == 0
        assert (score(client, version=2)["operation"], score(client, version=2)["threshold"]) == (1, 77)


def test_an_operation_that_another_process_recorded_is_taken_over(serve: Serve, store: ModelStore) -> None:
    with serve(store.root, store_poll_s=0.05) as client:
        assert score(client)["operation"] == 0
        detector = Detector.load(store.folder(CATEGORY, 1), "cpu")
        Operations(store).record(detector, lambda before: revised(detector, before, author="ann", rate=0.5))
        wait_until(lambda: score(client)["operation"] == 1)
        assert client.get(OPERATION).json()["operation"]["author"] == "ann"


def test_a_damaged_record_leaves_the_operation_in_force(serve: Serve, store: ModelStore) -> None:
    with serve(store.root, store_poll_s=0.05) as client:
        change(client, image_threshold=5)
        record = store.root / CATEGORY / "records" / "1" / "operation-2.json"
        record.write_text("{")
        wait_until(lambda: "operation-2" in client.get(PLATE).json().get("reason", ""))
        assert score(client)["operation"] == 1
        record.unlink()
        wait_until(lambda: "reason" not in client.get(PLATE).json())
        assert change(client, image_threshold=6)["number"] == 2


def test_changes_at_the_same_time_are_all_recorded(serve: Serve, store: ModelStore) -> None:
    with serve(store.root) as client, ThreadPoolExecutor(4) as pool:
        numbers = [
            operation["number"] for operation in pool.map(lambda k: change(client, image_threshold=k), range(100, 108))
        ]
        assert sorted(numbers) == list(range(1, 9))
        last = client.get(OPERATION).json()["operation"]
        assert last["number"] == 8
        assert score(client)["threshold"] == last["image_threshold"]


def test_a_read_only_store_refuses_a_change(serve: Serve, store: ModelStore, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    if os.getuid() or subprocess.run(["mount", "--bind", "-o", "ro", store.root, mount], check=False).returncode:
        pytest.skip("only root may mount, and not everywhere")
    try:
        with serve(mount) as client:
            answer = client.put(OPERATION, json={"image_threshold": 1})
            assert_problem(answer, 409, "store-read-only", "plumbline models")
            assert_problem(client.put(REGION, content=encode(mask(left=True)), headers=PNG), 409, "store-read-only")
            assert score(client)["operation"] == client.get(OPERATION).json()["operation"]["number"] == 0
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)
