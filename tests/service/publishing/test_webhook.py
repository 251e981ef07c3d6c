"""Results posted to a real receiver that does not always take them."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.prediction import Verdict
from service.publishing.webhook import target_of
from service.settings import SettingsError, load_settings
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, answer_of, encode, metric, part, wait_until

SECRET = "correct horse battery"


class Received:
    """What a receiver was sent: headers and bodies, and the paths that were asked for."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []

    @property
    def ids(self) -> list[str]:
        return [json.loads(body)["id"] for _, body in self.requests]


@contextmanager
def receiver(answer: Callable[[BaseHTTPRequestHandler, int], None]) -> Iterator[tuple[str, Received]]:
    """A receiver on a free port; ``answer`` gets the handler and the number of the request, from 0."""
    received, lock = Received(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                number = len(received.requests)
                received.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
                received.paths.append(self.path)
            answer(self, number)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def say(handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": "0", **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()


def score(client: httpx.Client, *, defective: bool = False) -> dict[str, Any]:
    image = encode(part(101 if defective else 100, defective=defective))
    return answer_of(client.post(f"/v1/categories/{CATEGORY}/score", files={"image": image}))


def count(client: httpx.Client, outcome: str, to: str = "webhook-1") -> float:
    return metric(client, "plumbline_results_published_total", outcome=outcome, to=to)


def is_genuine(secret: str, header: str, body: bytes, oldest_s: float = 300) -> bool:
    """As docs/protocols.md has it."""
    sent = dict(part.split("=", 1) for part in header.split(","))
    expected = hmac.new(secret.encode(), sent["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, sent["v1"]) and abs(time.time() - int(sent["t"])) < oldest_s


def test_a_receiver_that_fails_first(serve: Serve, models: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        if number == 0:
            say(handler, 503)
        elif number == 1:
            handler.close_connection = True  # without a word
        else:
            say(handler, 204)

    with (
        receiver(answer) as (url, received),
        serve(models, webhooks=f"{url}/results?token=t", webhook_secret=SECRET) as client,
    ):
        expected = score(client)
        wait_until(lambda: count(client, "delivered") == 1)
        assert count(client, "retried") == 2
        assert received.paths == ["/results?token=t"] * 3
        for headers, body in received.requests:
            result = json.loads(body)
            assert result.pop("time")
            assert result == expected
            assert headers["content-type"] == "application/json"
            assert headers["x-plumbline-id"] == expected["id"]
            assert is_genuine(SECRET, headers["x-plumbline-signature"], body)
            assert not is_genuine(SECRET, headers["x-plumbline-signature"], body + b" ")
            assert not is_genuine("another secret", headers["x-plumbline-signature"], body)


def test_each_receiver_is_told_of_its_verdicts(serve: Serve, models: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        say(handler, 200)

    with (
        receiver(answer) as (all_url, of_all),
        receiver(answer) as (bad_url, of_bad),
        serve(models, webhooks=f"{all_url}, {bad_url}#defective+review", webhook_secret=SECRET) as client,
    ):
        good, bad = score(client)["id"], score(client, defective=True)["id"]
        wait_until(lambda: count(client, "delivered") == 2 and count(client, "delivered", "webhook-2") == 1)
        assert sorted(of_all.ids) == sorted([good, bad])
        assert of_bad.ids == [bad]


@pytest.mark.parametrize("status", [302, 307, 400, 401, 404, 410])
def test_what_trying_again_does_not_help(
    serve: Serve, models: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        say(handler, status, Location="/elsewhere")

    with receiver(answer) as (url, received), serve(models, webhooks=url, webhook_secret=SECRET) as client:
        id = score(client)["id"]
        wait_until(lambda: count(client, "refused") == 1)
        assert received.paths == ["/"]
        assert count(client, "retried") == 0
        (record,) = [record for record in caplog.records if record.message == "result refused"]
        fields = record.fields  # type: ignore[attr-defined]
        assert (str(fields["id"]), fields["reason"]) == (id, f"status {status}")


def test_who_never_takes_it_is_given_up(serve: Serve, models: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        say(handler, 500)

    with (
        receiver(answer) as (url, received),
        serve(models, webhooks=url, webhook_secret=SECRET, webhook_give_up_s=2) as client,
    ):
        score(client)
        wait_until(lambda: count(client, "refused") == 1)
        assert count(client, "retried") >= 1
        assert len(received.requests) == 1 + count(client, "retried")


def test_a_receiver_that_hangs_keeps_no_answer_waiting(serve: Serve, models: Path) -> None:
    free = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        free.wait(60)
        say(handler, 200)

    with receiver(answer) as (url, received), serve(models, webhooks=url, webhook_secret=SECRET) as client:
        ids = [score(client)["id"] for _ in range(6)]
        assert count(client, "delivered") == 0
        free.set()
        wait_until(lambda: count(client, "delivered") == 6)
        assert set(received.ids) == set(ids)


def test_an_address_that_cannot_be_asked(serve: Serve, models: Path) -> None:
    with serve(models, webhooks=f"http://{'a' * 70}.example", webhook_secret=SECRET, webhook_give_up_s=0.1) as client:
        score(client)
        score(client)
        wait_until(lambda: count(client, "refused") == 2)


class TestSettings:
    def test_target(self) -> None:
        target = target_of("https://user:word@host/a?b=c#defective+review")
        assert str(target.url) == "https://user:word@host/a?b=c"
        assert target.verdicts == {Verdict.DEFECTIVE, Verdict.REVIEW}
        assert target_of("http://host").verdicts == frozenset(Verdict)

    @pytest.mark.parametrize(
        "text", ["ftp://s3cret@host", "host/s3cret", "http://", "https://s3cret@host:x", "http://s3cret@host#bad"]
    )
    def test_no_target(self, text: str) -> None:
        with pytest.raises(SettingsError, match="PLUMBLINE_WEBHOOKS") as error:
            target_of(text)
        assert "s3cret" not in str(error.value)

    def test_no_secret(self, serve: Serve, models: Path) -> None:
        with pytest.raises(SettingsError, match="PLUMBLINE_WEBHOOK_SECRET"), serve(models, webhooks="http://host"):
            pass

    def test_short_secret_is_not_quoted(self, models: Path) -> None:
        with pytest.raises(SettingsError, match="PLUMBLINE_WEBHOOK_SECRET") as error:
            load_settings(models=models, webhook_secret="s3cret")
        assert "s3cret" not in str(error.value)
