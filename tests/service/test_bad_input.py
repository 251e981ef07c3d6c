"""One test a class of bad input, over HTTP on a running server."""

from __future__ import annotations

import http.client
import io
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service.conftest import Serve
from tests.service.support import CATEGORY, MAX_UPLOAD_BYTES, assert_problem, bomb, encode, part, post_head

CATEGORIES = "/v1/categories"
ROUTES = [f"{CATEGORIES}/{CATEGORY}/{output}" for output in ("score", "heatmap", "explain")]
SCORE = ROUTES[0]
BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(autouse=True)
def still_serving(client: httpx.Client) -> Iterator[None]:
    """Whatever was sent, the next good image is scored."""
    yield
    assert client.post(SCORE, content=encode(part(0)), headers=BYTES).status_code == 200
    assert client.get("/healthz").status_code == 200


def send(client: httpx.Client, data: bytes, route: str = SCORE, **headers: str) -> httpx.Response:
    return client.post(route, content=data, headers=BYTES | headers)


def send_multipart(client: httpx.Client, body: bytes, content_type: str) -> httpx.Response:
    return client.post(SCORE, content=body, headers={"content-type": content_type})


@pytest.mark.parametrize("route", ROUTES)
class TestNotAnImage:
    def test_empty(self, client: httpx.Client, route: str) -> None:
        assert_problem(send(client, b"", route), 422, "unreadable-image", "empty", "PNG")

    @pytest.mark.parametrize(
        "data", [b"hello", b"\0" * 5000, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7"]
    )
    def test_something_else(self, client: httpx.Client, route: str, data: bytes) -> None:
        assert_problem(send(client, data, route), 422, "unreadable-image", "PNG, JPEG, BMP, TIFF, WebP")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WebP"])
    def test_truncated(self, client: httpx.Client, route: str, kind: str) -> None:
        data = encode(part(1), kind)
        for length in (10, 100, len(data) // 2):
            assert_problem(send(client, data[:length], route), 422, "unreadable-image")

    def test_gif(self, client: httpx.Client, route: str) -> None:
        for headers in (BYTES, {"content-type": "image/gif"}):
            response = client.post(route, content=encode(part(1), "GIF"), headers=headers)
            assert_problem(response, 415, "unsupported-image", "GIF", "PNG, JPEG, BMP, TIFF, WebP")

    def test_several_frames(self, client: httpx.Client, route: str) -> None:
        buffer = io.BytesIO()
        first, second = Image.fromarray(part(1)), Image.fromarray(part(2))
        first.save(buffer, "TIFF", save_all=True, append_images=[second])
        assert_problem(send(client, buffer.getvalue(), route), 415, "unsupported-image", "frames or pages")


class TestTooLarge:
    @pytest.mark.parametrize("route", ROUTES)
    def test_bytes_with_a_length(self, client: httpx.Client, route: str) -> None:
        response = send(client, b"\0" * (MAX_UPLOAD_BYTES + 1), route)
        assert_problem(response, 413, "upload-too-large", str(MAX_UPLOAD_BYTES))

    @pytest.mark.parametrize("route", ROUTES)
    def test_bytes_in_chunks(self, client: httpx.Client, route: str) -> None:
        chunks = (b"\0" * 2**16 for _ in range(MAX_UPLOAD_BYTES // 2**16 + 1))
        response = client.post(route, content=chunks, headers=BYTES)
        assert "content-length" not in response.request.headers
        assert_problem(response, 413, "upload-too-large", str(MAX_UPLOAD_BYTES))

    def test_bytes_are_refused_before_they_are_sent(self, client: httpx.Client) -> None:
        assert post_head(client, SCORE, MAX_UPLOAD_BYTES + 1).startswith("HTTP/1.1 413 ")

    def test_bytes_in_a_multipart_form(self, client: httpx.Client) -> None:
        response = client.post(SCORE, files={"image": b"\0" * MAX_UPLOAD_BYTES})
        assert_problem(response, 413, "upload-too-large")

    def test_bytes_in_a_multipart_form_in_chunks(self, client: httpx.Client) -> None:
        request = client.build_request("POST", SCORE, files={"image": b"\0" * MAX_UPLOAD_BYTES})
        body, content_type = request.read(), request.headers["content-type"]
        chunks = (body[start : start + 2**16] for start in range(0, len(body), 2**16))
        response = client.post(SCORE, content=chunks, headers={"content-type": content_type})
        assert_problem(response, 413, "upload-too-large")

    def test_exactly_the_limit_is_read(self, client: httpx.Client) -> None:
        data = encode(part(1))
        padded = data + b"\0" * (MAX_UPLOAD_BYTES - len(data))
        assert send(client, padded).status_code == 200

    @pytest.mark.parametrize("route", ROUTES)
    def test_decompression_bomb_costs_nothing(self, client: httpx.Client, route: str) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the server is a thread of this process
        response = send(client, bomb(60_000, 60_000), route)
        assert_problem(response, 413, "image-too-large", "60000x60000", "2000000")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB; decoded it is 10 GB

    def test_pixels_just_over_the_limit(self, client: httpx.Client) -> None:
        assert_problem(send(client, encode(np.zeros((1001, 2000), np.uint8))), 413, "image-too-large", "2002000")
        assert send(client, encode(np.zeros((1000, 2000), np.uint8))).status_code == 200


class TestMediaType:
    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize(
        "content_type",
        ["application/json", "text/plain", "application/x-www-form-urlencoded", "video/mp4", ";;", "\xff"],
    )
    def test_not_accepted(self, client: httpx.Client, route: str, content_type: str) -> None:
        headers = {b"content-type": content_type.encode("latin-1")}
        response = client.post(route, content=encode(part(1)), headers=headers)
        assert_problem(response, 415, "unsupported-media-type", "multipart/form-data", "image/*")

    def test_missing(self, client: httpx.Client) -> None:
        request = client.build_request("POST", SCORE, content=encode(part(1)))
        assert "content-type" not in request.headers
        assert_problem(client.send(request), 415, "unsupported-media-type", "without a content type")

    def test_compressed_body(self, client: httpx.Client) -> None:
        response = client.post(SCORE, content=b"x", headers=BYTES | {"content-encoding": "gzip"})
        assert_problem(response, 415, "unsupported-media-type", "gzip")


class TestMultipart:
    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (b"whatever", "multipart/form-data"),
            (b"whatever", "multipart/form-data; boundary="),
            (b"whatever", "multipart/form-data; boundary=limit"),
            (
                b"--limit\r\nContent-Disposition: form-data\r\n\r\nx\r\n--limit--\r\n",
                "multipart/form-data; boundary=limit",
            ),
            (b"--limit\r\n: x\r\n\r\nx\r\n--limit--\r\n", "multipart/form-data; boundary=limit"),
            (b"--limit\r\n\xff\xfe\r\n\r\n", "multipart/form-data; boundary=limit"),
            (b"", "multipart/form-data; boundary=" + "x" * 5000),
        ],
    )
    def test_malformed(self, client: httpx.Client, body: bytes, content_type: str) -> None:
        response = send_multipart(client, body, content_type)
        assert response.status_code in (400, 422)
        slug = "malformed-multipart" if response.status_code == 400 else "invalid-request"
        assert_problem(response, response.status_code, slug)

    def test_cut_off_before_its_end(self, client: httpx.Client) -> None:
        request = client.build_request("POST", SCORE, files={"image": encode(part(1))})
        response = send_multipart(client, request.read()[:-20], request.headers["content-type"])
        assert_problem(response, 400, "malformed-multipart", "closing boundary")

    def test_missing_field(self, client: httpx.Client) -> None:
        body = b"--limit--\r\n"
        response = send_multipart(client, body, "multipart/form-data; boundary=limit")
        assert_problem(response, 422, "invalid-request", "'image'")

    def test_another_field(self, client: httpx.Client) -> None:
        response = client.post(SCORE, files={"picture": encode(part(1))})
        assert_problem(response, 422, "invalid-request", "'picture'", "'image'")

    def test_a_second_field(self, client: httpx.Client) -> None:
        response = client.post(SCORE, files={"image": encode(part(1))}, data={"serial": "7"})
        assert_problem(response, 422, "invalid-request", "'serial'")

    def test_two_files(self, client: httpx.Client) -> None:
        response = client.post(SCORE, files=[("image", encode(part(1))), ("image", encode(part(2)))])
        assert_problem(response, 422, "invalid-request", "more than one file", "exactly one")

    def test_many_files(self, client: httpx.Client) -> None:
        response = client.post(SCORE, files=[("image", b"x")] * 500)
        assert_problem(response, 422, "invalid-request", "exactly one")

    def test_text_in_place_of_a_file(self, client: httpx.Client) -> None:
        response = client.post(SCORE, files={"image": (None, "part.png")})
        assert_problem(response, 422, "invalid-request", "file name")

    def test_empty_file(self, client: httpx.Client) -> None:
        assert_problem(client.post(SCORE, files={"image": b""}), 422, "unreadable-image", "empty")


@pytest.mark.parametrize(
    ("route", "query"),
    [
        (ROUTES[0], {"map": "maybe"}),
        (ROUTES[0], {"mpa": "true"}),
        (ROUTES[0], {"opacity": "0.5"}),
        (ROUTES[1], {"opacity": "1.5"}),
        (ROUTES[1], {"opacity": "-0.1"}),
        (ROUTES[1], {"opacity": "nan"}),
        (ROUTES[1], {"opacity": "half"}),
        (ROUTES[1], {"style": "contour"}),
        (ROUTES[1], {"é" * 500: "x" * 300}),
        (ROUTES[2], {"method": "lime"}),
        (ROUTES[2], {"opacity": "2"}),
        (ROUTES[2], {"steps": "10000"}),
    ],
)
def test_query(client: httpx.Client, route: str, query: dict[str, Any]) -> None:
    response = client.post(route, content=encode(part(1)), headers=BYTES, params=query)
    problem = assert_problem(response, 422, "invalid-request")
    ((name, value),) = query.items()
    assert problem["errors"][0]["location"] == f"query.{name}"[:80]
    assert repr(value)[:60] in problem["detail"]
    assert len(response.content) < 5000


class TestCategory:
    @pytest.mark.parametrize(
        "name",
        [
            "bottle",
            "PLATE",
            "plate ",
            "%20",
            "%2e%2e",
            "..%5c..",
            "%00",
            "caf%C3%A9",
            "%ff%fe",
            "a" * 3000,
            "%F0%9F%94%A9",
        ],
    )
    def test_unknown(self, client: httpx.Client, name: str) -> None:
        for method, path in (("GET", ""), ("POST", "/score"), ("POST", "/heatmap")):
            response = raw_request(client, method, f"{CATEGORIES}/{name}{path}")
            assert_problem(response, 404, "unknown-category", CATEGORY)
            assert len(response.content) < 2000

    @pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "../../etc/passwd", "plate%2f..", "plate/versions/1"])
    def test_path_traversal(self, client: httpx.Client, name: str) -> None:
        response = raw_request(client, "POST", f"{CATEGORIES}/{name}/score")
        assert_problem(response, 404, "not-found", "/v1/categories/{category}/score")

    def test_comes_before_the_image(self, client: httpx.Client) -> None:
        response = client.post(f"{CATEGORIES}/bottle/score", content=b"x" * (MAX_UPLOAD_BYTES + 1), headers=BYTES)
        assert_problem(response, 404, "unknown-category", "'bottle'")


class TestRoute:
    @pytest.mark.parametrize(
        "path", ["/", "/v1", "/v1/", "/v1/categories/", "/v3/categories", SCORE + "/", "/admin.php"]
    )
    def test_unknown(self, client: httpx.Client, path: str) -> None:
        for method in ("GET", "POST", "DELETE"):
            problem = assert_problem(
                client.request(method, path), 404, "not-found", "POST /v1/categories/{category}/score"
            )
            assert "GET /v1/categories" in problem["detail"]

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", SCORE), ("PUT", SCORE), ("DELETE", CATEGORIES), ("POST", "/readyz")]
    )
    def test_wrong_method(self, client: httpx.Client, method: str, path: str) -> None:
        response = client.request(method, path)
        assert_problem(response, 405, "method-not-allowed", response.headers["allow"])


@pytest.mark.parametrize("body", [b"\xf1Z\xd6\xaa", b"{", b"", b"[1", b'{"version": "\xff"}'])
def test_json_that_is_none(client: httpx.Client, body: bytes) -> None:
    response = client.put(f"{CATEGORIES}/{CATEGORY}/shadow", content=body, headers={"content-type": "application/json"})
    assert_problem(response, 422, "invalid-request")


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"content-type": "application/x-www-form-urlencoded"}, "'application/x-www-form-urlencoded'"),  # curl's own
        ({"content-type": "text/plain; charset=utf-8"}, "'text/plain'"),
        ({}, "without a content type"),
    ],
)
def test_json_that_does_not_say_so(client: httpx.Client, headers: dict[str, str], named: str) -> None:
    response = client.put(f"{CATEGORIES}/{CATEGORY}/shadow", content=b'{"version": 1}', headers=headers)
    assert_problem(response, 415, "unsupported-media-type", named, "application/json")
    shadow = client.get("/openapi.json").json()["paths"][f"{CATEGORIES}/{{category}}/shadow"]["put"]
    assert "415" in shadow["responses"]


@pytest.mark.parametrize(
    ("body", "location", "message"),
    [
        (b'{"version":1', "body", "JSON decode error at character 12: Expecting ',' delimiter"),
        (b"", "body", "Field required"),
        (b'{"number":1}', "body.version", "Field required"),
        (b'{"version":1,"note":"x"}', "body.note", "Extra inputs are not permitted: 'x'"),
        (b'{"version":0}', "body.version", "Input should be greater than or equal to 1, not '0'"),
    ],
)
def test_what_is_wrong_with_json(client: httpx.Client, body: bytes, location: str, message: str) -> None:
    headers = {"content-type": "application/json"}
    response = client.put(f"{CATEGORIES}/{CATEGORY}/shadow", content=body, headers=headers)
    problem = assert_problem(response, 422, "invalid-request", f"{location}: {message}")
    assert problem["errors"][0] == {"location": location, "message": message}


def test_a_time_that_is_none(serve: Serve, models: Path, tmp_path: Path) -> None:
    with serve(models, records=tmp_path) as client:
        response = client.get("/v1/inspections", params={"since": "yesterday"})
        problem = assert_problem(response, 422, "invalid-request")
        assert problem["detail"] == "query.since: is no date and time as 2026-11-26T15:00:00Z, not 'yesterday'"


def test_allowed_methods_are_those_of_every_route_of_the_address(client: httpx.Client) -> None:
    response = client.patch(f"{CATEGORIES}/{CATEGORY}/shadow")
    assert_problem(response, 405, "method-not-allowed", "PUT", "DELETE")
    assert set(response.headers["allow"].split(", ")) == {"PUT", "DELETE"}


@pytest.mark.parametrize("declared", [10, 10**6])
def test_length_that_lies(client: httpx.Client, declared: int) -> None:
    """A body shorter or longer than its declared length must neither be scored nor leave the server waiting."""
    data = encode(part(1))
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=30)
    connection.putrequest("POST", SCORE)
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(declared))
    connection.endheaders(data)
    if declared < len(data):
        assert connection.getresponse().status == 422
    connection.close()


def raw_request(client: httpx.Client, method: str, target: str) -> httpx.Response:
    """Send a path as it is, which httpx would normalise."""
    url = client.base_url.copy_with(raw_path=target.encode("ascii"))
    headers = BYTES if method == "POST" else {}
    return client.send(client.build_request(method, url, headers=headers, content=b"x" if method == "POST" else None))
