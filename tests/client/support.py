"""A server that answers what a test tells it to, and both clients behind one face."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from client import AsyncClient, Client


@dataclass
class Received:
    """A request that the scripted server got."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What it gives back; ``broken`` closes the connection without an answer."""

    status: int = 200
    content: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    broken: bool = False


def problem(status: int, kind: str, **headers: str) -> Answer:
    """Problem details as the service sends them."""
    content = {"type": f"urn:plumbline:problem:{kind}", "title": "-", "status": status, "detail": "because"}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, content, {"Content-Type": "application/problem+json", "X-Plumbline-Id": "4711", **names})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients leave in the middle; that is no news."""


@contextmanager
def scripted(reply: Callable[[Received], Answer], port: int = 0) -> Iterator[tuple[str, list[Received]]]:
    """A server, on a free port if none is named; gives its URL and the requests that it got."""
    received: list[Received] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Received(self.command, self.path, headers, body)
            received.append(request)
            answer = reply(request)
            if answer.broken:
                self.close_connection = True
                return
            content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            pass

    with _Server(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def in_turn(*answers: Answer) -> Callable[[Received], Answer]:
    """One answer after the other, the last for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


class Awaited:
    """An AsyncClient whose coroutines are run to their end: the same tests for both."""

    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, **options)

    def score_batch(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        async def collect() -> list[Any]:
            return [outcome async for outcome in self._client.score_batch(*arguments, **options)]

        return iter(self._runner.run(collect()))

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *arguments, **options: self._runner.run(method(*arguments, **options))


KINDS: dict[str, Callable[..., Any]] = {"sync": Client, "async": Awaited}
