"""The client that blocks."""

from __future__ import annotations

import ssl
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from . import calls
from .answers import Category, CategoryDetails, ExplanationPicture, Health, Method, Overlay, RawMap, Readiness, Score
from .batches import DEFAULT_CONCURRENCY, Outcome, Summary, folder_run, named, run_in_threads
from .calls import Call, Image
from .errors import DeadlineExceeded, PlumblineError, failure_of
from .progress import Progress
from .retries import Attempts, Retries
from .transport import DEFAULT_TIMEOUT_S, Reply, options

Answer = TypeVar("Answer")


class Client:
    """A client of one service; it may be shared by threads, and keeps its connections until it is closed.

    Every call raises PlumblineError where it does not succeed (see ``errors``), and OSError where the image's file
    cannot be read.

    Args:
        url: of the service, such as "http://127.0.0.1:8000".
        api_key: sent with every call.
        timeout_s: for a whole call, all tries and waits together, unless the call says otherwise. The service is told
            how long it has, and drops what it cannot do in time.
        retries: what is tried again; ``Retries(attempts=1)`` for nothing.
        verify: False takes any certificate; a context of one's own, that of a plant's own authority.
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
        self._http = httpx.Client(verify=verify, **options(url, api_key))
        self._timeout_s = timeout_s
        self._retries = retries or Retries()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def score(
        self,
        category: str,
        image: Image,
        *,
        score_map: bool = False,
        part: str | None = None,
        lot: str | None = None,
        timeout_s: float | None = None,
    ) -> Score:
        """Score one image.

        Args:
            category: which detector.
            image: the image file's path, its bytes, or a file opened for reading bytes.
            score_map: whether the answer has the score of every window.
            part: id of the part, for the record.
            lot: id of its lot.
            timeout_s: for this call.
        """
        data = calls.read_image(image)
        return self._do(calls.score(category, data, score_map=score_map, part=part, lot=lot), timeout_s)

    def heatmap(
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
        data = calls.read_image(image)
        return self._do(calls.heatmap(category, data, opacity=opacity, part=part, lot=lot), timeout_s)

    def raw_map(
        self,
        category: str,
        image: Image,
        *,
        part: str | None = None,
        lot: str | None = None,
        timeout_s: float | None = None,
    ) -> RawMap:
        """The anomaly map as computed, in 16 bits."""
        return self._do(calls.raw_map(category, calls.read_image(image), part=part, lot=lot), timeout_s)

    def explain(
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
        data = calls.read_image(image)
        return self._do(calls.explain(category, data, method=method, opacity=opacity, part=part, lot=lot), timeout_s)

    def categories(self, *, timeout_s: float | None = None) -> tuple[Category, ...]:
        """Every category, by name."""
        return self._do(calls.categories(), timeout_s)

    def category(self, name: str, *, timeout_s: float | None = None) -> CategoryDetails:
        """One category and its detector."""
        return self._do(calls.category(name), timeout_s)

    def health(self, *, timeout_s: float | None = None) -> Health:
        """Whether the service lives; asked once, never again."""
        return self._do(calls.health(), timeout_s)

    def ready(self, *, timeout_s: float | None = None) -> Readiness:
        """Whether the service can score; asked once, never again."""
        return self._do(calls.ready(), timeout_s)

    def score_batch(
        self, category: str, images: Iterable[Image], *, concurrency: int = DEFAULT_CONCURRENCY
    ) -> Generator[Outcome, None, None]:
        """Score many images, several at once; the outcomes come in the order of the images.

        An image that fails does not stop the others: its outcome has the error. Images are taken from ``images`` only
        as they are needed.
        """
        return run_in_threads(named(images), partial(self.score, category), concurrency)

    def score_folder(
        self,
        category: str,
        folder: str | Path,
        output: str | Path | None = None,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        progress: bool | Progress = False,
    ) -> Summary:
        """Score the images of a folder and of those below it, by name.

        Args:
            category: which detector.
            folder: what is scored: files with the ending of an image.
            output: a ``.jsonl`` or ``.csv`` file that gets a line an image as it is done. Images that it holds already
                are passed over, so that a run that was stopped goes on. Where the service could not answer, or the file
                could not be read, no line is written, and the next run tries again.
            concurrency: images under way at the same time.
            progress: True draws a bar (needs rich: ``pip install plumbline-client[progress]``); or a function that is
                told how many are done, and of how many.

        Returns:
            Counts, and the outcomes of this run that failed.

        Raises:
            Unauthorized, Forbidden, NotFound: what stops one image would stop all.
            ValueError: the output is of neither kind.
        """
        score = partial(self.score, category)
        with (
            folder_run(Path(folder), category, None if output is None else Path(output), progress) as run,
            closing(run_in_threads(run.todo, score, concurrency)) as outcomes,
        ):
            for outcome in outcomes:
                run.take(outcome)
        return run.summary

    def _do(self, call: Call[Answer], timeout_s: float | None) -> Answer:
        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                return call.answer(self._send(call, attempts.begin()))
            except PlumblineError as error:
                if not call.retried:
                    raise
                time.sleep(attempts.wait_after(error, repeatable=call.repeatable))

    def _send(self, call: Call[Answer], seconds: float) -> Reply:
        """One try. httpx limits each read; the time of all of them together is limited here."""
        deadline = time.monotonic() + seconds
        request = call.request(self._http, seconds)
        content = []
        try:
            response = self._http.send(request, stream=True)
            try:
                for chunk in response.iter_bytes():
                    content.append(chunk)
                    if time.monotonic() > deadline:
                        raise DeadlineExceeded(f"the answer of {request.url} did not end in time")
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise failure_of(error, request) from error
        return Reply.of(response, b"".join(content))
