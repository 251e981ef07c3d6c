"""Connections that ask for too much, or for nothing; bodies without end; what every answer says to browsers."""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from service import connections
from service.bodies import MAX_BYTES
from service.connections import MAX_HEAD_BYTES
from service.settings import SettingsError, load_settings
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, assert_problem, encode, part, wait_until

ACTIVATE = f"/v1/categories/{CATEGORY}/activate"
JSON = {"content-type": "application/json"}


def connect(client: httpx.Client) -> socket.socket:
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60)
    connection.settimeout(60)
    return connection


@pytest.fixture
def impatient(serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A service that waits three seconds only for the head of a request."""
    monkeypatch.setattr(connections, "_HEAD_S", 3)
    with serve(models, loaded=False) as client:
        yield client


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_head_that_never_ends(impatient: httpx.Client, sent: bytes) -> None:
    with connect(impatient) as slow:
        slow.sendall(sent)
        assert slow.recv(100) == b""  # closed


def test_second_head_that_never_ends(impatient: httpx.Client) -> None:
    with connect(impatient) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /heal")
        while slow.recv(4096):
            pass


def test_body_may_take_longer_than_the_head(impatient: httpx.Client) -> None:
    body = b'{"version": 7}'
    with connect(impatient) as slow:
        head = f"POST {ACTIVATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        time.sleep(4)
        slow.sendall(body)
        assert slow.recv(4096).startswith(b"HTTP/1.1 404 ")


def test_no_more_connections_than_set(serve: Serve, models: Path) -> None:
    with serve(models, loaded=False, max_connections=3) as client, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(client))
        extra = stack.enter_context(connect(client))
        answer = extra.recv(4096)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in answer
        stack.close()

        def answers() -> bool:
            try:
                client.get("/healthz")
            except httpx.TransportError:
                return False
            return True

        wait_until(answers)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * (MAX_HEAD_BYTES // 6),
        b"\x16\x03\x01 TLS, by mistake\r\n\r\n",
    ],
    ids=["address", "header", "headers", "tls"],
)
def test_head_that_is_too_long_or_none(client: httpx.Client, head: bytes) -> None:
    with connect(client) as connection:
        connection.sendall(head)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"server:" not in answer.lower()


def test_body_of_json_is_bounded(client: httpx.Client) -> None:
    big = b'{"version": "' + b"1" * MAX_BYTES + b'"}'
    assert_problem(client.post(ACTIVATE, content=big, headers=JSON), 413, "upload-too-large", str(MAX_BYTES))
    chunks = (big[start : start + 2**16] for start in range(0, len(big), 2**16))
    assert_problem(client.post(ACTIVATE, content=chunks, headers=JSON), 413, "upload-too-large", str(MAX_BYTES))
    answers = client.get("/openapi.json").json()["paths"]["/v1/categories/{category}/activate"]["post"]["responses"]
    assert {"408", "413"} <= set(answers)


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b"", b"{", b"null", b'{"version": NaN}', b'"\\ud800"'])
def test_body_that_is_no_json(client: httpx.Client, body: bytes) -> None:
    assert_problem(client.post(ACTIVATE, content=body, headers=JSON), 422, "invalid-request")


def test_body_of_json_that_never_ends(serve: Serve, models: Path) -> None:
    with serve(models, loaded=False, request_timeout_s=1) as client, connect(client) as slow:
        head = f"POST {ACTIVATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
def test_compressed_image_is_refused(client: httpx.Client, coding: str) -> None:
    headers = {"content-type": "image/png", "content-encoding": coding}
    response = client.post(f"/v1/categories/{CATEGORY}/score", content=encode(part(0)), headers=headers)
    assert_problem(response, 415, "unsupported-media-type", coding)


@pytest.mark.parametrize(
    "path", ["/healthz", "/v1/categories", "/no/such/page", "/openapi.json", "/docs", "/redoc", "/v2", "/2020-11-20/x"]
)
def test_what_every_answer_says_to_browsers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "server" not in headers


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_page_runs_its_own_scripts_only(client: httpx.Client, path: str) -> None:
    page = client.get(path)
    policy = page.headers["content-security-policy"]
    scripts = re.search(r"script-src ([^;]*)", policy)
    assert scripts is not None
    assert "unsafe" not in scripts[1]
    assert "http" not in policy
    for script in re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL):
        assert base64.b64encode(sha256(script.encode()).digest()).decode() in scripts[1]
    assert ("sha256-" in policy) == (path == "/docs")
    assert re.search(r"img-src [^;]*blob:", policy)  # by which the pages show a picture that was answered


def test_id_of_the_client_is_logged(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "plumbline.requests")
    sent = ["line 3/4711 \"'{}", "a" * 128, "a" * 129, "tab\there", "ü", ""]
    for id in sent:
        client.get("/v1/categories", headers=[(b"x-request-id", id.encode("latin-1"))])
    wait_until(lambda: len(caplog.records) == len(sent))  # a request is logged once it was answered
    logged = [getattr(record, "fields", {}).get("request_id") for record in caplog.records]
    assert logged == [*sent[:2], None, None, None, None]


def test_address_behind_a_proxy(serve: Serve, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "plumbline.requests")
    forwarded = {"X-Forwarded-For": "192.0.2.9"}
    for proxies, address in (("", "127.0.0.1"), ("192.0.2.0/24", "127.0.0.1"), ("127.0.0.0/8", "192.0.2.9")):
        with serve(models, loaded=False, trusted_proxies=proxies) as client:
            caplog.clear()
            client.get("/v1/categories", headers=forwarded)
            wait_until(lambda: bool(caplog.records))
            assert getattr(caplog.records[-1], "fields", {})["address"] == address
    with pytest.raises(SettingsError, match=r"PLUMBLINE_TRUSTED_PROXIES .*'proxy' is neither"):
        load_settings(models=models, trusted_proxies="proxy")
