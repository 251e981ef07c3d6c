"""Whether a category's images still are like those its detector was calibrated on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from models.prediction import Verdict
from service.errors import ProblemError
from service.exchangeability import ExchangeabilityTest
from service.inspection import Inspection
from service.registry import Registry, Served
from service.settings import Settings
from service.telemetry import Telemetry

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
WARNING_FACTOR = 10  # a warning comes at evidence ten times weaker, and so may be false ten times as often

_RECENT = 16  # inspections among which the same image, asked for in another form, is recognised
_SAME = 1e-5  # relative difference of its scores: a batch of another size sums in another order


class DriftState(StrEnum):
    OK = "ok"
    WARNING = "warning"
    DRIFT = "drift"


_STATES = tuple(DriftState)  # ascending; the place of a state is its value as a metric


class Watch:
    """A test that keeps its alarm: ``drift`` stays until the watch begins anew, a warning while its evidence lasts.

    Args:
        reference: numbers from the calibration; may be empty.
        rate: bound of the probability that ``drift`` is ever reached while nothing changes.

    Attributes:
        since: when the present state was reached; None for ok.
    """

    def __init__(self, reference: Iterable[float], rate: float) -> None:
        self.test = ExchangeabilityTest(reference)
        self.rate = rate
        self.state = DriftState.OK
        self.since: datetime | None = None

    def observe(self, number: float, time: datetime) -> None:
        """Take the next number, unless there is drift: what it looks like must not become what is usual."""
        if self.state is DriftState.DRIFT:
            return
        evidence = self.test.observe(number)
        level = evidence * self.rate
        state = _STATES[(level >= 1 / WARNING_FACTOR) + (level >= 1)]
        if state is not self.state:
            self.state, self.since = state, None if state is DriftState.OK else time


class Scored(NamedTuple):
    score: float
    verdict: Verdict
    output: str


class Monitor:
    """What is known of one served version.

    Attributes:
        scores: image scores of accepted parts against those of the calibration, either below the threshold: parts
            between defects are as good as the calibration's, and its own highest scores decide where good ends.
        rejects: 1 for a part that was not accepted, else 0, against those before.
        window: the latest inspections.
    """

    def __init__(self, served: Served, settings: Settings) -> None:
        detector = served.detector
        point = served.point
        self.served = served
        self.limit = point.image_threshold if point.review_band is None else point.review_band[0]
        self.calibration = detector.calibration_for(served.operation.region_of_interest).image_scores
        self.scores = Watch(self.calibration[self.calibration < self.limit].tolist(), settings.drift_false_alarm_rate)
        self.rejects = Watch((), settings.drift_false_alarm_rate)
        self.window: deque[Scored] = deque(maxlen=settings.drift_window)

    @property
    def watches(self) -> dict[str, Watch]:
        return {"scores": self.scores, "rejects": self.rejects}

    @property
    def state(self) -> DriftState:
        """The worst of the watches."""
        return max((watch.state for watch in self.watches.values()), key=_STATES.index)

    def take(self, inspection: Inspection) -> None:
        """Take one inspection of the version that is watched."""
        prediction = inspection.prediction
        scored = Scored(prediction.image_score, prediction.verdict, inspection.submission.output)
        if any(_same_image(scored, other) for other in islice(reversed(self.window), _RECENT)):
            return
        self.window.append(scored)
        accepted = scored.verdict is Verdict.GOOD
        self.rejects.observe(float(not accepted), inspection.time)
        if accepted and scored.score < self.limit:
            self.scores.observe(scored.score, inspection.time)

    def quantiles(self) -> dict[str, list[float] | None]:
        """Image scores of the calibration, of the window's accepted parts, and of all in it; None where it is empty."""
        return {
            "calibration": _quantiles(self.calibration),
            "accepted": _quantiles([one.score for one in self.window if one.verdict is Verdict.GOOD]),
            "all": _quantiles([one.score for one in self.window]),
        }

    def rejected_share(self) -> float | None:
        """Of the window; None where it is empty."""
        if not self.window:
            return None
        return sum(one.verdict is not Verdict.GOOD for one in self.window) / len(self.window)


class Drift(Collector):
    """The sink that watches the active version of every category; what it knows begins anew with another version."""

    def __init__(self, registry: Registry, settings: Settings, telemetry: Telemetry) -> None:
        self._registry = registry
        self._settings = settings
        self._monitors: dict[str, Monitor] = {}
        telemetry.registry.register(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def take(self, inspection: Inspection) -> None:
        """See ``Sink``; an inspection by another than the active version says nothing here."""
        try:
            monitor = self.monitor(inspection.served.category)
        except ProblemError:  # the category is gone, or no longer ready
            return
        if _is_same(monitor.served, inspection.served):
            monitor.take(inspection)

    def monitor(self, category: str) -> Monitor:
        """What is known of the active version.

        Raises:
            ProblemError: unknown, loading or failed.
        """
        served = self._registry.active(category)
        monitor = self._monitors.get(category)
        if monitor is None or not _is_same(monitor.served, served):
            monitor = self._monitors[category] = Monitor(served, self._settings)
        return monitor

    def forget(self, category: str) -> Monitor:
        """Begin anew; as ``monitor``."""
        self._monitors.pop(category, None)
        return self.monitor(category)

    def collect(self) -> Iterator[Metric]:
        """The metrics, made when they are asked for."""
        state = GaugeMetricFamily(
            "plumbline_drift_state", "0 ok, 1 warning, 2 drift; scores or rejects.", labels=("category", "test")
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
        rejected = GaugeMetricFamily(
            "plumbline_rejected_share", "Share of the latest inspections not accepted.", labels=("category",)
        )
        for category, monitor in list(self._monitors.items()):
            for name, watch in monitor.watches.items():
                state.add_metric((category, name), _STATES.index(watch.state))
                evidence.add_metric((category, name), watch.test.evidence)
            for of, values in monitor.quantiles().items():
                for level, value in zip(QUANTILES, values or (), strict=False):
                    quantile.add_metric((category, of, f"{level:g}"), value)
            if (share := monitor.rejected_share()) is not None:
                rejected.add_metric((category,), share)
        yield from (state, evidence, quantile, rejected)


def _is_same(one: Served, other: Served) -> bool:
    """Another operation is another threshold: what was seen before says nothing of it."""
    return (one.version, one.operation.number) == (other.version, other.operation.number)


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
