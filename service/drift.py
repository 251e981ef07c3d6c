"""Whether a category's images still are like those its detector was calibrated on."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple, Self
from weakref import ref

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from models.prediction import Verdict
from models.validity import mean_embedding
from service.batch_test import BatchOutcome, BatchTest
from service.drift_file import Known, KnownTest, StoredDrift, read_drift, write_drift
from service.errors import ProblemError
from service.exchangeability import Capital, NumberTest
from service.inspection import Inspection
from service.registry import Registry, Served
from service.settings import Settings
from service.telemetry import Telemetry

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FOLDER = "drift"
"""Of what is stored, in a folder of records."""
WARNING_FACTOR = 10  # a warning comes at evidence ten times weaker, and so may be false ten times as often

_STORE_EVERY_S = 60.0
_RECENT = 16  # inspections among which the same image, asked for in another form, is recognised
_SAME = 1e-5  # relative difference of its scores: a batch of another size sums in another order


class DriftState(StrEnum):
    OK = "ok"
    WARNING = "warning"
    DRIFT = "drift"


_log = logging.getLogger("plumbline.drift")

_STATES = tuple(DriftState)  # ascending; the place of a state is its value as a metric


class Watch:
    """The alarm of a test: ``drift`` stays until the watch begins anew, a warning while its evidence lasts.

    Args:
        capital: the test's.
        reference: how much of the calibration the test compares with.
        rate: bound of the probability that ``drift`` is ever reached while nothing changes.

    Attributes:
        since: when the present state was reached; None for ok.
    """

    def __init__(self, capital: Capital, reference: int, rate: float) -> None:
        self.capital = capital
        self.reference = reference
        self.rate = rate
        self.state = DriftState.OK
        self.since: datetime | None = None

    @property
    def over(self) -> bool:
        """Whether there is drift: what that looks like must not become what is usual."""
        return self.state is DriftState.DRIFT

    def look(self, time: datetime) -> None:
        """See what the evidence is by now."""
        level = self.capital.evidence * self.rate
        state = _STATES[(level >= 1 / WARNING_FACTOR) + (level >= 1)]
        if state is not self.state and not self.over:
            self.state, self.since = state, None if state is DriftState.OK else time


class Scored(NamedTuple):
    score: float
    verdict: Verdict
    output: str


class Monitor:
    """What is known of one version under one operation.

    Attributes:
        watches: ``scores``, image scores of accepted parts with those of the calibration, either below the threshold:
            parts between defects are as good as the calibration's, and its own highest scores decide where good ends;
            ``rejects``, 1 for a part that was not accepted, else 0, with those before; ``embeddings``, the mean
            embeddings of accepted parts with those of the calibration.
        window: the latest inspections.
        watched: tells this version, operation and calibration from any other, also in another process.
        changes: how often what is known has changed, and how often it had when it was last stored, ``stored_changes``.
    """

    def __init__(self, served: Served, settings: Settings) -> None:
        point, calibration_set = served.point, served.detector.calibration_set
        self.category = served.category
        self.key = key_of(served)
        self.changes, self.stored_changes = 1, 0
        self._detector = ref(served.detector)
        self.limit = point.image_threshold if point.review_band is None else point.review_band[0]
        calibration = served.detector.calibration_for(served.operation.region_of_interest).image_scores
        self._calibration_quantiles = _quantiles(calibration)
        below = calibration < self.limit
        references = calibration[below], mean_embedding(calibration_set.summaries[below])
        self._scores = NumberTest(references[0].tolist())
        self._rejects = NumberTest(())
        self._embeddings = BatchTest(references[1])
        self.watched = _digest(self.key, self.limit, *references)
        rate = settings.drift_false_alarm_rate
        self.watches = {
            "scores": Watch(self._scores.capital, self._scores.reference, rate),
            "rejects": Watch(self._rejects.capital, 0, rate),
            "embeddings": Watch(self._embeddings.capital, self._embeddings.reference, rate),
        }
        self.window: deque[Scored] = deque(maxlen=settings.drift_window)

    @property
    def state(self) -> DriftState:
        """The worst of the watches."""
        return max((watch.state for watch in self.watches.values()), key=_STATES.index)

    @property
    def squared_mmd(self) -> float | None:
        """Between the latest batch of embeddings and those before; None where no batch was full yet."""
        return self._embeddings.squared_mmd

    def watches_over(self, served: Served) -> bool:
        """Whether it is this version, and no other that was published under the same numbers."""
        return self.key == key_of(served) and self._detector() is served.detector

    def take(self, inspection: Inspection) -> Callable[[], BatchOutcome] | None:
        """Take one inspection of the version; gives what is to be computed for ``settle``, where a batch is full."""
        prediction = inspection.prediction
        scored = Scored(prediction.image_score, prediction.verdict, inspection.submission.output)
        if any(_same_image(scored, other) for other in islice(reversed(self.window), _RECENT)):
            return None
        self.window.append(scored)
        self.changes += 1
        accepted = scored.verdict is Verdict.GOOD
        self._observe("rejects", self._rejects, float(not accepted), inspection.time)
        if not accepted or scored.score >= self.limit:
            return None
        self._observe("scores", self._scores, scored.score, inspection.time)
        if prediction.summary is None or self.watches["embeddings"].over:
            return None
        return self._embeddings.add(mean_embedding(prediction.summary))

    def settle(self, outcome: BatchOutcome) -> None:
        """Take what was computed."""
        self._embeddings.settle(outcome)
        self.watches["embeddings"].look(datetime.now(UTC))
        self.changes += 1

    def abandon(self) -> None:
        """Go on where it could not be computed."""
        self._embeddings.abandon()

    def stored(self) -> StoredDrift:
        """What is known now."""
        tests = {
            name: KnownTest(
                state=watch.state.value, since=watch.since, count=watch.capital.count, capitals=watch.capital.capitals
            )
            for name, watch in self.watches.items()
        }
        known = Known(watched=self.watched, tests=tests, squared_mmd=self.squared_mmd, window=tuple(self.window))
        arrays: dict[str, NDArray[Any]] = {
            "scores": self._scores.kept,
            "rejects": self._rejects.kept,
            "embeddings": self._embeddings.kept,
            "batch": self._embeddings.batch,
        }
        return StoredDrift(known, arrays)

    def resume(self, stored: StoredDrift) -> None:
        """Go on where another process stood; a monitor for which that fails is of no more use.

        Raises:
            ValueError, KeyError: it watched otherwise than this build does.
        """
        known, arrays = stored.known, stored.arrays
        bets = {name: (test.count, test.capitals) for name, test in known.tests.items()}
        self._scores.resume(arrays["scores"], *bets["scores"])
        self._rejects.resume(arrays["rejects"], *bets["rejects"])
        self._embeddings.resume(arrays["embeddings"], arrays["batch"], known.squared_mmd, *bets["embeddings"])
        for name, watch in self.watches.items():
            watch.state, watch.since = DriftState(known.tests[name].state), known.tests[name].since
        self.window.extend(Scored(*one) for one in known.window)
        self.stored_changes = self.changes

    def _observe(self, name: str, test: NumberTest, number: float, time: datetime) -> None:
        watch = self.watches[name]
        if not watch.over:
            test.observe(number)
            watch.look(time)

    def quantiles(self) -> dict[str, list[float] | None]:
        """Image scores of the calibration, of the window's accepted parts, and of all in it; None where it is empty."""
        return {
            "calibration": self._calibration_quantiles,
            "accepted": _quantiles([one.score for one in self.window if one.verdict is Verdict.GOOD]),
            "all": _quantiles([one.score for one in self.window]),
        }

    def rejected_share(self) -> float | None:
        """Of the window; None where it is empty."""
        if not self.window:
            return None
        return sum(one.verdict is not Verdict.GOOD for one in self.window) / len(self.window)


class Drift(Collector):
    """The sink that watches the active version of every category; what it knows begins anew with another version.

    It is stored in the folder of records every minute and when the service stops, so that a restart takes away neither
    an alarm nor the evidence for one. What a crash loses does not depend on the images: the rate of false alarms holds.
    """

    def __init__(self, registry: Registry, settings: Settings, telemetry: Telemetry) -> None:
        self._registry = registry
        self._settings = settings
        self._folder = None if settings.records_folder is None else settings.records_folder / FOLDER
        self._monitors: dict[str, Monitor] = {}
        self._stored: dict[str, StoredDrift] = {}
        self._comparing: dict[str, asyncio.Task[None]] = {}
        self._writer = ThreadPoolExecutor(1, "drift")  # one, so that what is newer is written later
        self._problem: str | None = None
        self._task: asyncio.Task[None] | None = None
        telemetry.registry.register(self)

    async def __aenter__(self) -> Self:
        if self._folder is not None:
            self._stored = await asyncio.to_thread(read_drift, self._folder)
            self._task = asyncio.create_task(self._store_often())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._comparing.values():
            task.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._store()
        self._writer.shutdown()

    async def take(self, inspection: Inspection) -> None:
        """See ``Sink``; an inspection by another than the active version says nothing here."""
        try:
            monitor = self.monitor(inspection.served.category)
        except ProblemError:  # the category is gone, or no longer ready
            return
        if monitor.watches_over(inspection.served) and (compare := monitor.take(inspection)) is not None:
            self._comparing[monitor.category] = asyncio.create_task(self._compare(monitor, compare))

    async def _compare(self, monitor: Monitor, compare: Callable[[], BatchOutcome]) -> None:
        try:
            monitor.settle(await asyncio.to_thread(compare))
        except Exception:  # nobody waits for this task
            monitor.abandon()
            _log.exception("embeddings not compared", extra={"fields": {"category": monitor.category}})

    def monitor(self, category: str) -> Monitor:
        """What is known of the active version.

        Raises:
            ProblemError: unknown, loading or failed.
        """
        served = self._registry.active(category)
        monitor = self._monitors.get(category)
        if monitor is None or not monitor.watches_over(served):
            monitor = self._monitors[category] = self._resumed(served) or Monitor(served, self._settings)
        return monitor

    async def forget(self, category: str) -> Monitor:
        """Begin anew, after a restart too; as ``monitor``."""
        self.monitor(category)  # takes what is stored
        del self._monitors[category]
        monitor = self.monitor(category)
        await self._store()
        return monitor

    def _resumed(self, served: Served) -> Monitor | None:
        """What an earlier process knew, where it watched the same; asked once, for what comes later begins anew."""
        if (stored := self._stored.pop(served.category, None)) is None:
            return None
        monitor = Monitor(served, self._settings)
        if monitor.watched != stored.known.watched:
            return None
        try:
            monitor.resume(stored)
        except (ValueError, KeyError) as error:
            fields = {"category": served.category, "reason": str(error)}
            _log.warning("drift watch not taken up", extra={"fields": fields})
            return None
        return monitor

    async def _store_often(self) -> None:
        while True:
            await asyncio.sleep(_STORE_EVERY_S)
            await self._store()

    async def _store(self) -> None:
        """Store what is not yet; what cannot be written is tried again."""
        if self._folder is None:
            return
        problem, loop = None, asyncio.get_running_loop()
        for monitor in [monitor for monitor in self._monitors.values() if monitor.changes > monitor.stored_changes]:
            changes = monitor.changes
            try:
                write = partial(write_drift, self._folder, monitor.category, monitor.stored())
                await loop.run_in_executor(self._writer, write)
                monitor.stored_changes = changes
            except (OSError, ValueError) as error:
                problem = str(error)
        if problem is not None and problem != self._problem:
            _log.error("drift watch not stored", extra={"fields": {"reason": problem}})
        self._problem = problem

    def collect(self) -> Iterator[Metric]:
        """The metrics, made when they are asked for."""
        state = GaugeMetricFamily(
            "plumbline_drift_state",
            "0 ok, 1 warning, 2 drift; by scores, rejects and embeddings.",
            labels=("category", "test"),
        )
        evidence = GaugeMetricFamily(
            "plumbline_drift_evidence",
            "Evidence of a change: at 1 / false-alarm rate it counts as drift.",
            labels=("category", "test"),
        )
        quantile = GaugeMetricFamily(
            "plumbline_score_quantile",
            "Quantiles of image scores: calibration, and of the latest inspections accepted and all.",
            labels=("category", "of", "quantile"),
        )
        latest = GaugeMetricFamily(
            "plumbline_latest_inspections", "How many the latest inspections are.", labels=("category",)
        )
        rejected = GaugeMetricFamily(
            "plumbline_rejected_share", "Share of the latest inspections not accepted.", labels=("category",)
        )
        for category in tuple(self._stored):  # an alarm is told although nothing was inspected since the start
            with suppress(ProblemError):
                self.monitor(category)
        for category in self._monitors.keys() - {known.name for known in self._registry.categories()}:
            del self._monitors[category]
        for category, monitor in self._monitors.items():
            for name, watch in monitor.watches.items():
                state.add_metric((category, name), _STATES.index(watch.state))
                evidence.add_metric((category, name), watch.capital.evidence)
            for of, values in monitor.quantiles().items():
                for level, value in zip(QUANTILES, values or (), strict=False):
                    quantile.add_metric((category, of, f"{level:g}"), value)
            latest.add_metric((category,), len(monitor.window))
            if (share := monitor.rejected_share()) is not None:
                rejected.add_metric((category,), share)
        yield from (state, evidence, quantile, latest, rejected)


def _digest(key: tuple[int, int], limit: float, *references: NDArray[Any]) -> str:
    digest = sha256(repr((key, limit)).encode())
    for reference in references:
        digest.update(np.ascontiguousarray(reference).tobytes())
    return digest.hexdigest()


def key_of(served: Served) -> tuple[int, int]:
    """Another operation is another threshold: what was seen before says nothing of it."""
    return served.version, served.operation.number


def _same_image(one: Scored, other: Scored) -> bool:
    """Whether two inspections probably are of one image, of which first a score and then a heatmap was wanted.

    Two of one form are two images, however alike: a camera that stands still must be noticed.
    """
    return one.output != other.output and math.isclose(one.score, other.score, rel_tol=_SAME)


def _quantiles(scores: NDArray[np.float64] | list[float]) -> list[float] | None:
    if not len(scores):
        return None
    values: list[float] = np.quantile(scores, QUANTILES).tolist()
    return values
