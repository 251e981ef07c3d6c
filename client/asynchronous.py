"""The client for an event loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from . import calls
from .answers import Category, CategoryDetails, ExplanationPicture, Health, Method, Overlay, RawMap, Readiness, Score
from .batches import DEFAULT_CONCURRENCY, Outcome, Summary, folder_run, named, run_in_tasks
from .calls import Call, Image
from .errors import DeadlineExceeded, PlumblineError, failure_of
from .progress import Progress
from .retries import Attempts, Retries
from .transport import DEFAULT_TIMEOUT_S, Reply, options

Answer = TypeVar("Answer")


class AsyncClient:
    """``Client`` as coroutines, for one event loop: ``async with AsyncClient(url) as client``.

    Arguments and errors are those of ``Client``.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: Retries | None = None,
        verify: bool | ssl.SSLContext = True,
    ) -> None:
        self._http = httpx.AsyncClient(verify=verify, **options(url, api_key))
        self._timeout_s = timeout_s
        self._retries = retries or Retries()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def score(
        self,
        category: str,
        image: Image,
        *,
        score_map: bool = False,
        part: str | None = None,
        lot: str | None = None,
        timeout_s: float | None = None,
    ) -> Score:
        """Score one image."""
        data = await _read(image)
        return await self._do(calls.score(category, data, score_map=score_map, part=part, lot=lot), timeout_s)

    async def heatmap(
        self,
        category: str,
        image: Image,
        *,
        opacity: float | None = None,
        part: str | None = None,
        lot: str | None = None,
        timeout_s: float | None = None,
    ) -> Overlay:
        """Show where one image deviates: colours over the original; ``opacity`` 0 to 1."""
        data = await _read(image)
        return await self._do(calls.heatmap(category, data, opacity=opacity, part=part, lot=lot), timeout_s)

    async def raw_map(
        self,
        category: str,
        image: Image,
        *,
        part: str | None = None,
        lot: str | None = None,
        timeout_s: float | None = None,
    ) -> RawMap:
        """The anomaly map as computed, in 16 bits."""
        return await self._do(calls.raw_map(category, await _read(image), part=part, lot=lot), timeout_s)

    async def explain(
        self,
        category: str,
        image: Image,
        *,
        method: Method | None = None,
        opacity: float | None = None,
        part: str | None = None,
        lot: str | None = None,
        timeout_s: float | None = None,
    ) -> ExplanationPicture:
        """Show what made the score of one image; slow, and one at a time in the whole service."""
        data = await _read(image)
        return await self._do(
            calls.explain(category, data, method=method, opacity=opacity, part=part, lot=lot), timeout_s
        )

    async def categories(self, *, timeout_s: float | None = None) -> tuple[Category, ...]:
        """Every category, by name."""
        return await self._do(calls.categories(), timeout_s)

    async def category(self, name: str, *, timeout_s: float | None = None) -> CategoryDetails:
        """One category and its detector."""
        return await self._do(calls.category(name), timeout_s)

    async def health(self, *, timeout_s: float | None = None) -> Health:
        """Whether the service lives; asked once, never again."""
        return await self._do(calls.health(), timeout_s)

    async def ready(self, *, timeout_s: float | None = None) -> Readiness:
        """Whether the service can score; asked once, never again."""
        return await self._do(calls.ready(), timeout_s)

    def score_batch(
        self, category: str, images: Iterable[Image], *, concurrency: int = DEFAULT_CONCURRENCY
    ) -> AsyncGenerator[Outcome, None]:
        """Score many images, several at once; the outcomes come in the order of the images."""
        return run_in_tasks(named(images), partial(self.score, category), concurrency)

    async def score_folder(
        self,
        category: str,
        folder: str | Path,
        output: str | Path | None = None,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        progress: bool | Progress = False,
    ) -> Summary:
        """Score the images of a folder and of those below it, by name; ``output`` makes it resumable."""
        score = partial(self.score, category)
        with folder_run(Path(folder), category, None if output is None else Path(output), progress) as run:
            async with aclosing(run_in_tasks(run.todo, score, concurrency)) as outcomes:
                async for outcome in outcomes:
                    run.take(outcome)
        return run.summary

    async def _do(self, call: Call[Answer], timeout_s: float | None) -> Answer:
        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                return call.answer(await self._send(call, attempts.begin()))
            except PlumblineError as error:
                if not call.retried:
                    raise
                await asyncio.sleep(attempts.wait_after(error, repeatable=call.repeatable))

    async def _send(self, call: Call[Answer], seconds: float) -> Reply:
        """One try."""
        request = call.request(self._http, seconds)
        try:
            async with asyncio.timeout(seconds):  # httpx limits each read, not all of them together
                response = await self._http.send(request)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{request.url} did not answer in time") from error
        except httpx.HTTPError as error:
            raise failure_of(error, request) from error
        return Reply.of(response, response.content)


async def _read(image: Image) -> bytes:
    """A file may be slow, and must not keep the loop waiting."""
    return image if isinstance(image, bytes) else await asyncio.to_thread(calls.read_image, image)
