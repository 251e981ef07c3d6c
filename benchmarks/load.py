"""The load of the benchmark over HTTP: a process of its own, so that what it costs is told apart from the service.

python -m benchmarks.load reads one ``Load`` as JSON from standard input and prints one ``Outcome``.

On a machine of two cores a client takes from the service what it costs itself, hundreds of times a second: this one
writes requests that were composed before, and reads of an answer what it needs.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel

_SETTLE_S = 60.0
_PAUSE_S = 0.2  # of a client that was refused: shorter than Retry-After, so that the service is never short of work


class Load(BaseModel):
    """What to send.

    Attributes:
        url: of the route, which takes an image as its body.
        images: files, sent in turn.
        seconds: how long requests are begun.
        concurrency: closed loop: so many clients, each sends the next when it has its answer.
        rate: open loop: so many requests a second, whatever becomes of them. Exactly one of the two is given.
        arrivals: open loop: at the steps of a clock, as from a line, or at random (a Poisson process).
        timeout_s: the deadline that every request asks for.
    """

    url: str
    images: list[Path]
    seconds: float
    concurrency: int | None = None
    rate: float | None = None
    arrivals: Literal["regular", "poisson"] = "poisson"
    timeout_s: float | None = None
    seed: int = 0


class Answer(BaseModel):
    """One request: when it was due, how late this client was with it, how long its answer took from when it was due,
    and what it was; status 0: none came."""

    due_s: float
    late_s: float
    took_s: float
    status: int
    retry_after: bool


class Outcome(BaseModel):
    """All requests, the time until the last answer, and the CPU time that sending them took."""

    answers: list[Answer]
    seconds: float
    cpu_seconds: float


def due_times(load: Load) -> Iterator[float]:
    """When each request of an open loop is due, in seconds from the beginning; the same of each such load."""
    assert load.rate is not None
    chance, due = random.Random(load.seed), 0.0
    while True:
        due += chance.expovariate(load.rate) if load.arrivals == "poisson" else 1 / load.rate
        if due > load.seconds:
            return
        yield due


async def apply(load: Load) -> Outcome:
    """Send a load and wait for every answer."""
    with closing(Client(load.url, load.timeout_s)) as client:
        return await _apply(load, client)


async def _apply(load: Load, client: Client) -> Outcome:
    requests = [client.request(path.read_bytes()) for path in load.images]
    answers: list[Answer] = []

    async def send(due: float) -> int:
        sent = time.monotonic()
        status, retry_after = await client.send(requests[len(answers) % len(requests)])
        answered = time.monotonic()
        answers.append(
            Answer(due_s=due - begun, late_s=sent - due, took_s=answered - due, status=status, retry_after=retry_after)
        )
        return status

    status, _ = await client.send(requests[0])  # what the first one costs, on either side, is not measured
    if status != 200:
        raise RuntimeError(f"{load.url} answered {status or 'nothing'}")
    begun, cpu = time.monotonic(), _cpu_s()
    if load.concurrency is not None:
        await asyncio.gather(*(_one_client(send, begun + load.seconds) for _ in range(load.concurrency)))
    else:
        async with asyncio.TaskGroup() as group:
            async for due in _arrivals(load, begun):
                group.create_task(send(due))
    return Outcome(answers=answers, seconds=time.monotonic() - begun, cpu_seconds=_cpu_s() - cpu)


class Client:
    """Posts to one URL over HTTP/1.1 without TLS, on connections that are kept."""

    def __init__(self, url: str, timeout_s: float | None = None) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        timeout = "" if timeout_s is None else f"X-Request-Timeout: {timeout_s}\r\n"
        self._head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/octet-stream\r\n{timeout}"
        )
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def request(self, body: bytes) -> bytes:
        """What is to be sent."""
        return f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def send(self, request: bytes) -> tuple[int, bool]:
        """The status of the answer, 0 where none came, and whether it has Retry-After."""
        writer = None
        try:
            async with asyncio.timeout(_SETTLE_S):
                reader, writer = self._kept() or await asyncio.open_connection(*self._address)
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"\r\ncontent-length: *(\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, EOFError, asyncio.LimitOverrunError):  # a TimeoutError is an OSError
            if writer is not None:
                writer.close()
            return 0, False
        if b"\r\nconnection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head.split(maxsplit=2)[1]), b"\r\nretry-after:" in head

    def close(self) -> None:
        """Close what was kept."""
        while self._idle:
            self._idle.pop()[1].close()

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and reader.exception() is None:
                return reader, writer
            writer.close()
        return None


async def _one_client(send: Callable[[float], Awaitable[int]], until: float) -> None:
    while (now := time.monotonic()) < until:
        if await send(now) != 200:
            await asyncio.sleep(_PAUSE_S)


async def _arrivals(load: Load, begun: float) -> AsyncIterator[float]:
    """When the next request is due; late ones are due when they should have been sent, not when they were."""
    for seconds in due_times(load):
        due = begun + seconds
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        yield due


def _cpu_s() -> float:
    usage = getrusage(RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(asyncio.run(apply(Load.model_validate_json(sys.stdin.read()))).model_dump_json())
