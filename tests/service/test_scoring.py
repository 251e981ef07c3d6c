from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.densities import KernelDensityConfiguration
from models.detector import Detector
from models.images import decode_image
from models.store import ModelStore
from service.rendering import colour_scale
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, DEFECT, HEIGHT, WIDTH, answer_of, encode, make_detector, part

SCORE = f"/v1/categories/{CATEGORY}/score"
HEATMAP = f"/v1/categories/{CATEGORY}/heatmap"
BYTES = {"content-type": "application/octet-stream"}


def post(client: httpx.Client, data: bytes, **query: Any) -> dict[str, Any]:
    return answer_of(client.post(SCORE, content=data, headers=BYTES, params=query))


def heatmap(client: httpx.Client, data: bytes, **query: Any) -> tuple[NDArray[Any], httpx.Headers]:
    response = client.post(HEATMAP, content=data, headers=BYTES, params=query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    picture = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture, response.headers


def test_score_is_the_detectors(client: httpx.Client, detector: Detector) -> None:
    for image in (part(100), part(101, defective=True)):
        (expected,) = detector.predict([image])
        answer = post(client, encode(image))
        assert answer["image_score"] == pytest.approx(expected.image_score, abs=1e-6)
        assert answer["p_value"] == expected.p_value
        assert answer["verdict"] == expected.verdict
        assert answer["threshold"] == detector.operating_point.image_threshold
        assert answer["pixel_threshold"] == detector.operating_point.pixel_threshold
        assert len(answer["regions"]) == len(expected.regions)
        assert answer["image"] == {"width": WIDTH, "height": HEIGHT}
        assert (answer["category"], answer["version"]) == (CATEGORY, 1)
        assert "score_map" not in answer


def test_a_score_from_a_sample_has_an_error_bar(serve: Serve, client: httpx.Client, tmp_path: Path) -> None:
    density = KernelDensityConfiguration(mode="sampled", samples=256, tolerance=1e6, gamma=1)
    sampled = make_detector(density=density, bank=4096)
    ModelStore(tmp_path).publish(CATEGORY, sampled.save)
    [expected] = sampled.predict([part(100)])
    assert expected.image_score_error > 0
    with serve(tmp_path) as other:
        answer = post(other, encode(part(100)))
    assert answer["image_score_error"] == pytest.approx(expected.image_score_error, rel=1e-3)
    assert post(client, encode(part(100)))["image_score_error"] == 0  # summed whole


def test_region_lies_on_the_defect_of_the_original_image(client: httpx.Client) -> None:
    assert post(client, encode(part(103)))["verdict"] == "good"
    answer = post(client, encode(part(103, defective=True)))
    assert answer["verdict"] == "defective"
    peak, box = answer["regions"][0]["peak"], answer["regions"][0]["box"]
    assert DEFECT.x - 20 <= peak["x"] <= DEFECT.x + DEFECT.width + 20
    assert DEFECT.y - 20 <= peak["y"] <= DEFECT.y + DEFECT.height + 20
    assert box["x"] < DEFECT.x + DEFECT.width
    assert box["x"] + box["width"] > DEFECT.x
    assert answer["regions"][0]["peak_score"] > answer["pixel_threshold"]


def test_times_add_up(client: httpx.Client) -> None:
    times = post(client, encode(part(103)))["times"]
    assert set(times) == {"upload", "decode", "place", "queue", "score", "judge", "total"}
    assert all(value >= 0 for value in times.values())
    total = times.pop("total")
    assert sum(times.values()) <= total + 0.01  # each is rounded


def test_score_map(client: httpx.Client, detector: Detector) -> None:
    answer = post(client, encode(part(104)), map="true")
    score_map = np.array(answer["score_map"])
    assert score_map.shape == (detector.geometry.grid_size,) * 2
    assert score_map.max() == answer["image_score"]


def test_multipart_is_the_same_as_the_body(client: httpx.Client) -> None:
    data = encode(part(105))
    response = client.post(SCORE, files={"image": ("part.png", data, "image/png")})
    assert response.status_code == 200
    assert response.json()["image_score"] == post(client, data)["image_score"]


@pytest.mark.parametrize("content_type", ["image/png", "IMAGE/PNG; charset=binary", "application/octet-stream"])
def test_content_types_of_the_body(client: httpx.Client, content_type: str) -> None:
    response = client.post(SCORE, content=encode(part(106)), headers={"content-type": content_type})
    assert response.status_code == 200


def test_body_in_chunks_without_a_length(client: httpx.Client) -> None:
    data = encode(part(106))
    chunks = iter([data[:1000], data[1000:]])
    assert client.post(SCORE, content=chunks, headers=BYTES).json()["image_score"] == post(client, data)["image_score"]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_score_the_same(client: httpx.Client, kind: str) -> None:
    image = part(107)
    assert post(client, encode(image, kind))["image_score"] == post(client, encode(image))["image_score"]


@pytest.mark.parametrize("kind", ["JPEG", "WebP"])
def test_lossy_formats_are_read(client: httpx.Client, kind: str) -> None:
    assert post(client, encode(part(107), kind))["image"] == {"width": WIDTH, "height": HEIGHT}


def test_grayscale_sixteen_bits_and_alpha(client: httpx.Client) -> None:
    gray = part(108)[:, :, 0]
    expected = post(client, encode(np.repeat(gray[:, :, None], 3, axis=2)))["image_score"]
    assert post(client, encode(gray))["image_score"] == expected
    assert post(client, encode(gray.astype(np.uint16) << 8))["image_score"] == expected
    opaque = np.dstack([gray, gray, gray, np.full_like(gray, 255)])
    assert post(client, encode(opaque))["image_score"] == expected


def test_exif_orientation_is_applied(client: httpx.Client) -> None:
    image = part(109, defective=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be displayed turned by 90 degrees clockwise
    turned = np.ascontiguousarray(np.rot90(image))
    answer = post(client, encode(turned, exif=exif.tobytes()))
    upright = post(client, encode(image))
    for key in ("image", "image_score", "regions"):
        assert answer[key] == upright[key]
    picture, _ = heatmap(client, encode(turned, exif=exif.tobytes()))
    assert picture.shape == (HEIGHT, WIDTH, 3)


def test_parallel_requests_answer_as_serial_ones(serve: Serve, models: Path) -> None:
    files = [encode(part(200 + seed, defective=seed % 2 == 0)) for seed in range(16)]
    with serve(models, batch_size=4) as client, ThreadPoolExecutor(16) as pool:
        serial = [post(client, data, map="true") for data in files]
        parallel = list(pool.map(lambda data: post(client, data, map="true"), files))
    for answer in (*serial, *parallel):
        del answer["id"], answer["times"]
    assert parallel == serial


def test_overlay_colours_what_is_above_the_scales_start_only(client: httpx.Client, detector: Detector) -> None:
    image = part(110, defective=True)
    picture, headers = heatmap(client, encode(image))
    (prediction,) = detector.predict([image])
    values = prediction.placement.map_to_original(prediction.anomaly_map)
    start, end = colour_scale(detector.operating_point.pixel_threshold)
    assert float(headers["x-plumbline-scale-start"]) == start
    assert float(headers["x-plumbline-scale-end"]) == end
    changed = (picture[:, :, ::-1] != image).any(axis=2)
    edge = 1e-4 * (end - start)  # where rounding may fall on either side
    outline = np.zeros(changed.shape, np.uint8)
    for region in prediction.regions:
        cv2.polylines(outline, [np.array([(point.x, point.y) for point in region.contour])], True, 1, thickness=3)
    assert changed[values > start + edge].mean() > 0.99
    assert not changed[(values < start - edge) & (outline == 0)].any()
    assert changed[DEFECT.y + 20, DEFECT.x + 20]


def test_overlay_of_no_opacity_is_the_image(client: httpx.Client) -> None:
    image = part(111, defective=True)
    picture, _ = heatmap(client, encode(image), opacity=0)
    assert (picture[:, :, ::-1] == image).all()


def test_raw_heatmap_gives_back_the_anomaly_map(client: httpx.Client, detector: Detector) -> None:
    image = part(112, defective=True)
    codes, headers = heatmap(client, encode(image), style="raw")
    (prediction,) = detector.predict([image])
    assert codes.dtype == np.uint16
    step = float(headers["x-plumbline-map-step"])
    values = float(headers["x-plumbline-map-minimum"]) + codes * step
    assert np.abs(values - prediction.anomaly_map).max() <= step / 2 + 1e-6
    side = detector.geometry.image_size
    assert headers["x-plumbline-map-content"] == f"0,0,{side},{side}"


def test_heatmap_carries_the_score_in_its_headers(client: httpx.Client) -> None:
    data = encode(part(113, defective=True))
    answer = post(client, data)
    for query in ({"style": "overlay"}, {"style": "raw"}):
        _, headers = heatmap(client, data, **query)
        assert float(headers["x-plumbline-image-score"]) == answer["image_score"]
        assert float(headers["x-plumbline-threshold"]) == answer["threshold"]
        assert float(headers["x-plumbline-pixel-threshold"]) == answer["pixel_threshold"]
        assert float(headers["x-plumbline-p-value"]) == answer["p_value"]
        assert headers["x-plumbline-verdict"] == answer["verdict"]
        assert headers["x-plumbline-version"] == "1"
        assert headers["x-plumbline-category"] == CATEGORY
        assert headers["x-plumbline-image-size"] == f"{WIDTH}x{HEIGHT}"


def test_ids_differ_and_are_in_the_header(client: httpx.Client) -> None:
    responses = [client.post(SCORE, content=encode(part(114)), headers=BYTES) for _ in range(2)]
    assert responses[0].json()["id"] != responses[1].json()["id"]
    assert responses[0].headers["x-plumbline-id"] == responses[0].json()["id"]


def test_corrupted_images_never_break_the_service(client: httpx.Client) -> None:
    random = np.random.default_rng(0)
    files = [encode(part(115), kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WebP")]
    for data in files:
        for _ in range(8):
            damaged = np.frombuffer(data, np.uint8).copy()
            where = random.integers(0, min(len(damaged), 400), 6)
            damaged[where] = random.integers(0, 256, 6)
            response = client.post(SCORE, content=damaged.tobytes(), headers=BYTES)
            assert response.status_code in (200, 413, 415, 422), response.text


def test_image_is_decoded_as_in_training(client: httpx.Client, detector: Detector) -> None:
    buffer = io.BytesIO()
    Image.fromarray(part(116)).save(buffer, "JPEG", quality=70)
    (expected,) = detector.predict([decode_image(buffer.getvalue())])
    assert post(client, buffer.getvalue())["image_score"] == pytest.approx(expected.image_score, abs=1e-6)
