"""Many images: a few under way at once, in order, one that fails not stopping the others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .answers import Score
from .calls import Image
from .errors import Forbidden, ImageRefused, NotFound, PlumblineError, Unauthorized
from .output import Output
from .progress import Progress, progress_of

DEFAULT_CONCURRENCY = 4

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

# The image at the head may be slow: as many times the concurrency are taken, so that the others go on meanwhile.
_WINDOW = 2

_STOPS_ALL = (Unauthorized, Forbidden, NotFound)


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        name: its path as given, or its number among the images where it has none.
        score: None where it failed.
        error: why it failed.
    """

    name: str
    score: Score | None = None
    error: PlumblineError | OSError | None = None


@dataclass
class Summary:
    """What ``score_folder`` did.

    Attributes:
        scored: images scored by this run.
        skipped: images that the output held already.
        failed: the outcomes of images that could not be scored by this run.
        verdicts: images of each verdict, scored by this run.
    """

    scored: int = 0
    skipped: int = 0
    failed: list[Outcome] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)


Named = Iterable[tuple[str, Image]]


def named(images: Iterable[Image]) -> Iterator[tuple[str, Image]]:
    """Images with what to call them in an outcome."""
    for number, image in enumerate(images):
        yield str(number) if isinstance(image, bytes) or hasattr(image, "read") else str(image), image


def find_images(folder: Path) -> list[Path]:
    """The images of a folder and of those below it, by path."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())


def run_in_threads(images: Named, score: Callable[[Image], Score], concurrency: int) -> Generator[Outcome, None, None]:
    """The outcome of each image, in order, ``concurrency`` of them under way."""

    def attempt(name: str, image: Image) -> Outcome:
        try:
            return Outcome(name, score(image))
        except (PlumblineError, OSError) as error:
            return Outcome(name, error=error)

    with ThreadPoolExecutor(_checked(concurrency), thread_name_prefix="plumbline-client") as pool:
        waiting = deque[Future[Outcome]]()
        try:
            for name, image in images:
                waiting.append(pool.submit(attempt, name, image))
                if len(waiting) >= _WINDOW * concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


async def run_in_tasks(
    images: Named, score: Callable[[Image], Awaitable[Score]], concurrency: int
) -> AsyncGenerator[Outcome, None]:
    """The same on an event loop."""
    turns = asyncio.Semaphore(_checked(concurrency))

    async def attempt(name: str, image: Image) -> Outcome:
        async with turns:
            try:
                return Outcome(name, await score(image))
            except (PlumblineError, OSError) as error:
                return Outcome(name, error=error)

    waiting = deque[asyncio.Task[Outcome]]()
    try:
        for name, image in images:
            waiting.append(asyncio.create_task(attempt(name, image)))
            if len(waiting) >= _WINDOW * concurrency:
                yield await waiting[0]
                waiting.popleft()
        while waiting:
            yield await waiting[0]
            waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _checked(concurrency: int) -> int:
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; it must be 1 or more")
    return concurrency


class FolderRun:
    """A folder that is being scored.

    Attributes:
        todo: its images that the output does not hold.
        summary: of what became of them so far.
    """

    def __init__(self, paths: list[tuple[str, Image]], output: Output | None, progress: Progress) -> None:
        self.todo = [(name, path) for name, path in paths if output is None or name not in output.done]
        self.summary = Summary(skipped=len(paths) - len(self.todo))
        self._output = output
        self._progress = progress
        self._report()

    def take(self, outcome: Outcome) -> None:
        """Note and write what became of an image.

        Raises:
            Unauthorized, Forbidden, NotFound: what stops one image would stop all.
        """
        if isinstance(outcome.error, _STOPS_ALL):
            raise outcome.error
        if outcome.score is not None:
            self.summary.scored += 1
            verdict = str(outcome.score.verdict)
            self.summary.verdicts[verdict] = self.summary.verdicts.get(verdict, 0) + 1
        else:
            self.summary.failed.append(outcome)
        final = outcome.score is not None or isinstance(outcome.error, ImageRefused)
        if self._output is not None and final:  # the others are tried again by the next run
            self._output.add(outcome.name, outcome.score, str(outcome.error) if outcome.error else None)
        self._report()

    def _report(self) -> None:
        done = self.summary.scored + len(self.summary.failed)
        self._progress(self.summary.skipped + done, self.summary.skipped + len(self.todo))


@contextmanager
def folder_run(folder: Path, category: str, output: Path | None, progress: bool | Progress) -> Iterator[FolderRun]:
    """Prepare to score a folder; its images are named by their path below it."""
    paths: list[tuple[str, Image]] = [(path.relative_to(folder).as_posix(), path) for path in find_images(folder)]
    with progress_of(progress) as report:
        file = None if output is None else Output(output, category)
        try:
            yield FolderRun(paths, file, report)
        finally:
            if file is not None:
                file.close()
