"""``POST /v1/categories/{category}/explain``, on a running server."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.densities import RotationClassifier, RotationClassifierConfiguration
from models.detector import Detector
from models.explanation import Explanation, Method, explain
from models.heads import ROTATIONS, projection_head
from models.scan import Scan
from models.store import ModelStore
from service.rendering import full_colour, render_explanation
from tests.service.conftest import Serve
from tests.service.support import (
    CATEGORY,
    HEIGHT,
    WIDTH,
    assert_problem,
    encode,
    make_detector,
    metric,
    part,
    post_head,
)

EXPLAIN = f"/v1/categories/{CATEGORY}/explain"
SCORE = f"/v1/categories/{CATEGORY}/score"
BYTES = {"content-type": "application/octet-stream"}
every_method = pytest.mark.parametrize("method", get_args(Method))


def send(client: httpx.Client, data: bytes, route: str = EXPLAIN, **query: Any) -> httpx.Response:
    return client.post(route, content=data, headers=BYTES, params=query)


def picture_of(png: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture.astype(np.uint8)


@every_method
def test_the_picture_is_that_of_the_explanation(client: httpx.Client, detector: Detector, method: Method) -> None:
    image = part(100, defective=True)
    response = send(client, encode(image), method=method)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    picture = picture_of(response.content)
    expected = picture_of(render_explanation(image, explain(detector, image, method)))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    # Two runs of a network may round otherwise, which shows in a colour now and then.
    assert np.abs(picture.astype(int) - expected).mean() < 0.1
    assert (picture != image[:, :, ::-1]).any()


@every_method
def test_the_headers_have_its_numbers(client: httpx.Client, detector: Detector, method: Method) -> None:
    image = part(101, defective=True)
    headers = send(client, encode(image), method=method).headers
    explanation = explain(detector, image, method)
    box = explanation.prediction.placement.to_original_box(explanation.window)
    assert headers["x-plumbline-window"] == f"{box.x},{box.y},{box.width},{box.height}"
    assert headers["x-plumbline-method"] == method
    assert float(headers["x-plumbline-full-colour"]) == pytest.approx(full_colour(explanation), rel=1e-3)
    score = client.post(SCORE, content=encode(image), headers=BYTES).json()
    assert float(headers["x-plumbline-image-score"]) == score["image_score"]
    for name in ("threshold", "pixel_threshold", "p_value"):
        assert float(headers[f"x-plumbline-{name.replace('_', '-')}"]) == score[name]
    assert headers["x-plumbline-verdict"] == score["verdict"] == "defective"
    assert headers["x-plumbline-image-size"] == f"{WIDTH}x{HEIGHT}"
    if method == "integrated_gradients":
        total, baseline = (float(headers[f"x-plumbline-{name}"]) for name in ("attribution-sum", "baseline-score"))
        moved = float(np.abs(explanation.attributions).sum())
        assert total == pytest.approx(score["image_score"] - baseline, abs=0.02 * moved)
        assert total > 0  # the hole makes it more anomalous
    else:
        assert "x-plumbline-baseline-score" not in headers


def test_integrated_gradients_are_the_default(client: httpx.Client) -> None:
    data = encode(part(102, defective=True))
    assert send(client, data).headers["x-plumbline-method"] == "integrated_gradients"


def test_no_opacity_is_the_image(client: httpx.Client) -> None:
    image = part(103, defective=True)
    assert (picture_of(send(client, encode(image), opacity=0).content)[:, :, ::-1] == image).all()


def test_multipart_is_the_same_as_the_body(client: httpx.Client) -> None:
    data = encode(part(104))
    response = client.post(EXPLAIN, files={"image": ("part.png", data, "image/png")}, params={"method": "grad_cam"})
    assert response.status_code == 200
    assert response.content == send(client, data, method="grad_cam").content


def test_metrics(client: httpx.Client) -> None:
    def count(stage: str) -> float:
        return metric(client, "plumbline_stage_seconds_count", stage=stage)

    before = count("explain"), count("score")
    assert send(client, encode(part(105))).status_code == 200
    assert (count("explain"), count("score")) == (before[0] + 1, before[1])


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Explanations say that they have begun, and wait."""
    entered, opened = threading.Event(), threading.Event()

    def held(*arguments: Any, **options: Any) -> Explanation:
        entered.set()
        assert opened.wait(60)
        return explain(*arguments, **options)

    monkeypatch.setattr("service.inspection.explain", held)
    return entered, opened


def test_one_image_is_explained_at_a_time(
    serve: Serve, models: Path, gate: tuple[threading.Event, threading.Event]
) -> None:
    entered, opened = gate
    data = encode(part(106))
    with serve(models) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, client, data)
        assert entered.wait(60)
        refused = send(client, data)
        assert_problem(refused, 503, "queue-full", "explained")
        assert int(refused.headers["retry-after"]) >= 1
        assert post_head(client, EXPLAIN, 1000).startswith("HTTP/1.1 503 ")  # before the body is read
        score = pool.submit(send, client, data, SCORE)  # waits for its turn, and is not refused
        opened.set()
        assert (first.result().status_code, score.result().status_code) == (200, 200)
        assert send(client, data).status_code == 200


def test_an_explanation_that_takes_too_long_is_given_up(
    serve: Serve, models: Path, gate: tuple[threading.Event, threading.Event]
) -> None:
    _, opened = gate
    with serve(models, request_timeout_s=5) as client:
        assert_problem(send(client, encode(part(107))), 504, "deadline-exceeded", "X-Request-Timeout")
        assert client.get("/healthz").status_code == 200  # an explanation may take any time
        opened.set()


def test_what_cannot_be_explained_is_refused_before_the_body_is_read(serve: Serve, tmp_path: Path) -> None:
    own = make_detector()
    configuration = own.scan.configuration.model_copy(update={"density": RotationClassifierConfiguration()})
    [member] = own.scan.members
    density = RotationClassifier().adopt(projection_head(member.encoder.feature_dimension, 0, 8, ROTATIONS))
    scan = Scan(configuration, member.encoder, density, member.device)
    detector = Detector(CATEGORY, scan, own.calibration_set, data_fingerprint="0" * 64)
    ModelStore(tmp_path).publish(CATEGORY, detector.save)
    with serve(tmp_path) as client:
        assert_problem(send(client, encode(part(108))), 409, "not-explainable", "rotation_classifier", "kernel_density")
        assert post_head(client, EXPLAIN, 1000).startswith("HTTP/1.1 409 ")
        assert send(client, encode(part(108)), SCORE).status_code == 200
