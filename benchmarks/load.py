"""The load of the benchmark over HTTP: a process of its own, so that what it costs is told apart from the service.

python -m benchmarks.load reads one ``Load`` as JSON from standard input and prints one ``Outcome``.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Literal

import httpx
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
    """One request: when it was due, how long its answer took from then, and what it was; status 0: none came."""

    due_s: float
    took_s: float
    status: int
    retry_after: bool


class Outcome(BaseModel):
    """All requests, the time until the last answer, and the CPU time that sending them took."""

    answers: list[Answer]
    seconds: float
    cpu_seconds: float


async def apply(load: Load) -> Outcome:
    """Send a load and wait for every answer."""
    bodies = [path.read_bytes() for path in load.images]
    headers = {"Content-Type": "application/octet-stream"}
    if load.timeout_s is not None:
        headers["X-Request-Timeout"] = str(load.timeout_s)
    answers: list[Answer] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=_SETTLE_S, limits=limits, headers=headers) as client:

        async def send(due: float) -> int:
            body = bodies[len(answers) % len(bodies)]
            status, retry_after = 0, False
            try:
                response = await client.post(load.url, content=body)
                status, retry_after = response.status_code, "retry-after" in response.headers
            except httpx.HTTPError:
                pass
            took = time.monotonic() - due
            answers.append(Answer(due_s=due - begun, took_s=took, status=status, retry_after=retry_after))
            return status

        await send_one_first(client, load.url, bodies[0])
        begun, cpu = time.monotonic(), _cpu_s()
        if load.concurrency is not None:
            await asyncio.gather(*(_one_client(send, begun + load.seconds) for _ in range(load.concurrency)))
        else:
            async with asyncio.TaskGroup() as group:
                async for due in _arrivals(load, begun):
                    group.create_task(send(due))
        return Outcome(answers=answers, seconds=time.monotonic() - begun, cpu_seconds=_cpu_s() - cpu)


async def send_one_first(client: httpx.AsyncClient, url: str, body: bytes) -> None:
    """What the first request costs, on either side, is not measured."""
    (await client.post(url, content=body)).raise_for_status()


async def _one_client(send: Callable[[float], Awaitable[int]], until: float) -> None:
    while (now := time.monotonic()) < until:
        if await send(now) != 200:
            await asyncio.sleep(_PAUSE_S)


async def _arrivals(load: Load, begun: float) -> AsyncIterator[float]:
    """When the next request is due; late ones are due when they should have been sent, not when they were."""
    assert load.rate is not None
    chance, due = random.Random(load.seed), begun
    while True:
        due += chance.expovariate(load.rate) if load.arrivals == "poisson" else 1 / load.rate
        if due > begun + load.seconds:
            return
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        yield due


def _cpu_s() -> float:
    usage = getrusage(RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(asyncio.run(apply(Load.model_validate_json(sys.stdin.read()))).model_dump_json())
