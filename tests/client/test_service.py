"""Both clients against a running service."""

from __future__ import annotations

import io
from pathlib import Path
from typing import get_args

import httpx
import numpy as np
import pytest
from PIL import Image

from client import (
    ConnectionFailed,
    ImageRefused,
    InvalidRequest,
    NotFound,
    Retries,
    Verdict,
)
from client.answers import Method
from models.explanation import Method as ServicesMethod
from models.images import EXTENSIONS as SERVICES_EXTENSIONS
from models.prediction import Verdict as ServicesVerdict
from tests.client.conftest import Connect
from tests.service.support import CATEGORY, HEIGHT, MAX_UPLOAD_BYTES, WIDTH, encode, part

GOOD, DEFECTIVE = encode(part(100)), encode(part(101, defective=True))


def test_score_is_what_the_service_answers(connect: Connect, url: str) -> None:
    score = connect(url).score(CATEGORY, DEFECTIVE, score_map=True)
    answer = httpx.post(
        f"{url}/v1/categories/{CATEGORY}/score?map=true",
        content=DEFECTIVE,
        headers={"Content-Type": "image/png"},
        timeout=60,
    ).json()
    said = score.model_dump(mode="json", exclude_none=True)
    for volatile in ("id", "times"):
        assert answer.pop(volatile).__class__ is said.pop(volatile).__class__
    assert said == answer
    assert score.verdict is Verdict.DEFECTIVE
    assert score.regions[0].peak_score > score.pixel_threshold
    assert max(max(row) for row in score.score_map) == score.image_score


def test_nothing_of_an_answer_is_unknown(connect: Connect, url: str) -> None:
    """The client's types lag behind no field of this very version's service."""
    client = connect(url)
    picture = client.explain(CATEGORY, GOOD)
    for answer in (client.score(CATEGORY, GOOD), client.heatmap(CATEGORY, GOOD), client.raw_map(CATEGORY, GOOD)):
        assert answer.model_extra == {}
    assert picture.model_extra == {}
    assert client.category(CATEGORY).model_extra == {}
    assert client.ready().model_extra == client.health().model_extra == {}


def test_an_image_is_a_path_bytes_or_a_file(connect: Connect, url: str, tmp_path: Path) -> None:
    path = tmp_path / "part.png"
    path.write_bytes(GOOD)
    client = connect(url)
    with path.open("rb") as file:
        images = (GOOD, path, str(path), io.BytesIO(GOOD), file)
        assert len({client.score(CATEGORY, image).image_score for image in images}) == 1
    with pytest.raises(FileNotFoundError):
        client.score(CATEGORY, tmp_path / "absent.png")


def test_heatmap(connect: Connect, url: str) -> None:
    client = connect(url)
    score, overlay = client.score(CATEGORY, DEFECTIVE), client.heatmap(CATEGORY, DEFECTIVE, opacity=0)
    assert (np.array(Image.open(io.BytesIO(overlay.png))) == part(101, defective=True)).all()
    for name in (
        "category",
        "version",
        "operation",
        "image_score",
        "threshold",
        "pixel_threshold",
        "p_value",
        "verdict",
        "image",
    ):
        assert getattr(overlay, name) == getattr(score, name)
    assert overlay.scale_start < overlay.pixel_threshold < overlay.scale_end


def test_raw_map(connect: Connect, url: str) -> None:
    raw = connect(url).raw_map(CATEGORY, DEFECTIVE)
    codes = np.array(Image.open(io.BytesIO(raw.png)))
    values = raw.map_minimum + codes * raw.map_step
    assert codes.max() == 65535
    assert values.max() > raw.pixel_threshold
    assert (raw.map_content.width, raw.map_content.height) == codes.shape


@pytest.mark.parametrize("method", get_args(Method))
def test_explain(connect: Connect, url: str, method: Method) -> None:
    explained = connect(url).explain(CATEGORY, DEFECTIVE, method=method)
    assert Image.open(io.BytesIO(explained.png)).size == (WIDTH, HEIGHT)
    assert explained.method == method
    assert 0 <= explained.window.x < WIDTH
    assert (explained.baseline_score is not None) == (method == "integrated_gradients")


def test_categories_and_health(connect: Connect, url: str) -> None:
    client = connect(url)
    (only,) = client.categories()
    assert (only.category, only.state, only.version) == (CATEGORY, "ready", 1)
    assert client.category(CATEGORY).detector is not None
    assert client.health().healthy
    assert client.ready().ready
    assert client.ready().categories == (only,)


def test_errors(connect: Connect, url: str) -> None:
    client = connect(url)
    with pytest.raises(NotFound) as missing:
        client.score("a/b c", GOOD)
    assert missing.value.kind in ("unknown-category", "not-found")
    with pytest.raises(NotFound, match="bottle") as missing:
        client.category("bottle")
    assert (missing.value.status, missing.value.kind) == (404, "unknown-category")
    assert missing.value.request_id
    for image, kind in ((b"", "unreadable-image"), (b"x" * (MAX_UPLOAD_BYTES + 1), "upload-too-large")):
        with pytest.raises(ImageRefused) as refused:
            client.score(CATEGORY, image)
        assert refused.value.kind == kind
    with pytest.raises(InvalidRequest) as invalid:
        client.heatmap(CATEGORY, GOOD, opacity=2)
    assert [error.location for error in invalid.value.errors] == ["query.opacity"]
    assert not isinstance(invalid.value, ImageRefused)


def test_nobody_listens(connect: Connect) -> None:
    client = connect("http://127.0.0.1:9", retries=Retries(attempts=1))
    with pytest.raises(ConnectionFailed, match="cannot be reached") as failed:
        client.score(CATEGORY, GOOD)
    assert not failed.value.sent
    with pytest.raises(ConnectionFailed):
        client.health()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://x:port"])
def test_no_url_of_a_service(connect: Connect, url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a service"):
        connect(url)


@pytest.mark.parametrize("key", ["", "plumb_key\n", "plumb key", "plumb_kéy"])
def test_no_api_key(connect: Connect, key: str) -> None:
    with pytest.raises(ValueError, match="the API key") as refused:
        connect("http://127.0.0.1:9", api_key=key)
    assert "plumb" not in str(refused.value)


def test_words_are_the_services() -> None:
    from client.batches import EXTENSIONS

    assert set(ServicesVerdict) <= {str(verdict) for verdict in Verdict}
    assert get_args(Method) == get_args(ServicesMethod)
    assert set(SERVICES_EXTENSIONS) == EXTENSIONS
