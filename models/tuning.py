"""Which inference plan is the fastest on this machine, measured on the calibration images that a detector keeps.

A detector keeps no training images, so its bank stays as it was embedded, by the plan that it was fitted with. Another
plan's embeddings differ from those by their rounding, which shifts scores a little; the thresholds are set anew from
the calibration images, scanned by the new plan, so that the false-reject rate holds for the scores as they now are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from models.calibration_set import calibrate
from models.detector import Detector, Ensemble, Scan, combine
from models.device import computes_bfloat16
from models.inference import FLOAT32, Engine, InferenceError, InferencePlan, Precision

NOISE = 1.03  # a plan must be this many times faster than the one that a version has to take its place


@dataclass(frozen=True)
class Measured:
    """How fast a plan is, and how far its scores are from those of float32.

    Attributes:
        milliseconds: an image's, the median; by the size of the batch.
        spread: the quartiles, likewise.
        largest_difference: of the scores of all windows of the calibration images.
        mean_difference: likewise, with its sign: by how much scores are shifted.
        rank_correlation: Spearman's, of their image scores; None of fewer than three images.
    """

    plan: InferencePlan
    milliseconds: Mapping[int, float]
    spread: Mapping[int, tuple[float, float]]
    largest_difference: float
    mean_difference: float
    rank_correlation: float | None

    def facts(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            **self.plan.model_dump(),
            "milliseconds": {str(batch): round(value, 4) for batch, value in self.milliseconds.items()},
            "spread": {str(batch): [round(value, 4) for value in pair] for batch, pair in self.spread.items()},
            "largest_difference": self.largest_difference,
            "mean_difference": self.mean_difference,
            "rank_correlation": self.rank_correlation,
        }


def candidates(device: torch.device, *, compiled: bool = False) -> list[InferencePlan]:
    """The plans worth measuring on a device, float32 by torch first.

    Args:
        compiled: also those by torch.compile, which take minutes to make and, on a CPU, are hardly faster.
    """
    precisions: list[Precision] = ["float32"]
    engines: list[Engine] = ["torch"]
    if device.type == "cuda":
        precisions.append("float16")
        engines.append("cuda_graph")
    if computes_bfloat16(device):
        precisions.append("bfloat16")
    if compiled:
        engines.append("compile")
    return [InferencePlan(precision=precision, engine=engine) for engine in engines for precision in precisions]


def measure(
    detector: Detector, plans: Sequence[InferencePlan], batches: Sequence[int], rounds: int
) -> tuple[list[Measured], dict[str, str]]:
    """Time plans in turns, every other round in the opposite order, and compare their scores with those of float32.

    Args:
        batches: numbers of images that are scanned together.
        rounds: timed runs of each plan and batch.

    Returns:
        What was measured, in the order of ``plans``; and why others could not be, by their names.
    """
    scans: dict[InferencePlan, Scan | Ensemble] = {}
    failed: dict[str, str] = {}
    known = detector.calibration_set
    image_scores, score_maps = {}, {}
    for plan in [FLOAT32, *(plan for plan in plans if plan != FLOAT32)]:
        try:
            scan = by_plan(detector, plan)
            found = calibrate(scan, detector.geometry, known.inputs, known.contents)
        except (InferenceError, ValueError) as error:  # such as numbers too large for float16
            failed[plan.name] = str(error)
            continue
        scans[plan], image_scores[plan], score_maps[plan] = scan, found.scores.image_scores, found.score_maps
    timed = [plan for plan in plans if plan in scans]
    seconds = {batch: _times([scans[plan] for plan in timed], _taken(known.inputs, batch), rounds) for batch in batches}
    measured = []
    for number, plan in enumerate(timed):
        difference = score_maps[plan].astype(np.float64) - score_maps[FLOAT32]
        of_image = {batch: 1000 * np.array(times[number]) / batch for batch, times in seconds.items()}
        measured.append(
            Measured(
                plan,
                {batch: float(np.median(values)) for batch, values in of_image.items()},
                {batch: _quartiles(values) for batch, values in of_image.items()},
                float(np.abs(difference).max()),
                float(difference.mean()),
                _rank_correlation(image_scores[plan], image_scores[FLOAT32]),
            )
        )
    return measured, failed


def fastest(measured: Sequence[Measured], own: InferencePlan, batch: int) -> InferencePlan:
    """The plan that takes least time for a batch; the version's own where none is faster by more than noise."""
    times = {each.plan: each.milliseconds[batch] for each in measured}
    best = min(times, key=lambda plan: times[plan])
    return own if own in times and times[own] < NOISE * times[best] else best


def by_plan(detector: Detector, plan: InferencePlan) -> Scan | Ensemble:
    """A detector's scan by another plan, on the bank that it has.

    Raises:
        InferenceError: the plan does not run here.
    """
    return combine(
        [
            Scan(
                member.configuration.model_copy(update={"inference": plan}),
                member.encoder,
                member.density,
                member.device,
            )
            for member in detector.scan.members
        ]
    )


def tuned(detector: Detector, plan: InferencePlan, record: Mapping[str, Any]) -> Detector:
    """A detector that computes by another plan, calibrated anew by it, at the same false-reject rate.

    Its test for images of something else stays; a review band is dropped, for it is in other scores.

    Args:
        record: what was measured, ready for JSON; kept with the detector.

    Raises:
        InferenceError: the plan does not run here.
    """
    scan, known = by_plan(detector, plan), detector.calibration_set
    calibration_set = calibrate(scan, detector.geometry, known.inputs, known.contents)
    return Detector(
        detector.category,
        scan,
        calibration_set,
        calibration_set.scores.operating_point(detector.operating_point.false_reject_rate),
        validity=detector.validity,
        data_fingerprint=detector.data_fingerprint,
        training={**detector.training, "tuning": {**record, "of_version": detector.version}},
    )


def _taken(inputs: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    """So many inputs, taken again where there are fewer."""
    return inputs[np.arange(batch) % len(inputs)]


def _times(scans: Sequence[Scan | Ensemble], images: NDArray[np.uint8], rounds: int) -> list[list[float]]:
    """Seconds of every look at a batch, by scan; a look ends on the CPU, so nothing is left to wait for."""
    for scan in scans:
        scan.look(images)
    times: list[list[float]] = [[] for _ in scans]
    order: list[tuple[Callable[[NDArray[np.uint8]], object], list[float]]] = [
        (scan.look, taken) for scan, taken in zip(scans, times, strict=True)
    ]
    for _ in range(rounds):
        for look, taken in order:
            started = time.perf_counter()
            look(images)
            taken.append(time.perf_counter() - started)
        order.reverse()
    return times


def _quartiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


def _rank_correlation(scores: NDArray[np.float64], others: NDArray[np.float64]) -> float | None:
    if len(scores) < 3 or len(set(scores)) == 1 or len(set(others)) == 1:
        return None
    return float(spearmanr(scores, others).statistic)
