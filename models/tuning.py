"""Which inference plan is the fastest on this machine, measured on the calibration images that a detector keeps.

A detector keeps no training images, so its bank stays as it was embedded, by the plan that it was fitted with. Another
plan's embeddings differ from those by their rounding, which shifts scores a little; the thresholds are set anew from
the calibration images, scanned by the new plan, so that the false-reject rate holds for the scores as they now are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from models.calibration import OperatingPoint
from models.calibration_set import CalibrationSet, calibrate
from models.detector import Detector
from models.device import computes_bfloat16
from models.inference import FLOAT32, Engine, InferenceError, InferencePlan, Precision
from models.scan import Ensemble, Scan, by_plan
from models.timing import Timing, interleave

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


class Tried(NamedTuple):
    """A detector's scan by a plan, and its calibration images as that scan sees them."""

    scan: Scan | Ensemble
    calibration_set: CalibrationSet


def measure(
    detector: Detector, plans: Sequence[InferencePlan], batches: Sequence[int], rounds: int
) -> tuple[list[Measured], dict[InferencePlan, Tried], dict[str, str]]:
    """Time plans in turns, every other round in the opposite order, and compare their scores with those of float32.

    Args:
        batches: numbers of images that are scanned together.
        rounds: timed runs of each plan and batch.

    Returns:
        What was measured, in the order of ``plans``; what was made for it; and why others could not be, by their names.

    Raises:
        InferenceError: float32 by torch, which all are compared with, does not run either.
    """
    tried: dict[InferencePlan, Tried] = {}
    failed: dict[str, str] = {}
    batched = {batch: _taken(detector.calibration_set.inputs, batch) for batch in batches}
    for plan in [FLOAT32, *(plan for plan in plans if plan != FLOAT32)]:
        try:
            tried[plan] = _try(detector, plan, batched.values())
        # Too little memory, kernels that cannot be recorded, numbers too large for float16: the others go on.
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if plan == FLOAT32:
                raise InferenceError(
                    f"{plan.name}, which all are compared with, does not run here: {reason}"
                ) from error
            failed[plan.name] = reason
        if plan.name in failed:  # here, where the error no longer holds what was made
            torch.cuda.empty_cache()
    timed = {plan: tried[plan] for plan in plans if plan in tried}
    timings = {batch: _timings(timed, images, rounds) for batch, images in batched.items()}
    exact = tried[FLOAT32].calibration_set
    measured = []
    for plan, (_, found) in timed.items():
        difference = found.score_maps.astype(np.float64) - exact.score_maps
        of_image = {batch: 1000 * np.array(times[plan.name].seconds) / batch for batch, times in timings.items()}
        measured.append(
            Measured(
                plan,
                {batch: float(np.median(values)) for batch, values in of_image.items()},
                {batch: _quartiles(values) for batch, values in of_image.items()},
                float(np.abs(difference).max()),
                float(difference.mean()),
                _rank_correlation(found.scores.image_scores, exact.scores.image_scores),
            )
        )
    return measured, tried, failed


def fastest(measured: Sequence[Measured], own: InferencePlan, batch: int) -> InferencePlan:
    """The plan that takes least time for a batch; the version's own where none is faster by more than noise."""
    times = {each.plan: each.milliseconds[batch] for each in measured}
    best = min(times, key=lambda plan: times[plan])
    return own if own in times and times[own] < NOISE * times[best] else best


def tuned(
    detector: Detector, chosen: Tried, record: Mapping[str, Any], before: OperatingPoint | None = None
) -> Detector:
    """A detector that computes by a plan that was tried on it, calibrated by it, at the same false-reject rate.

    Args:
        record: what was measured, ready for JSON; kept with the detector.
        before: what is in force for ``detector``, as of ``Detector.rescanned``.
    """
    training = {**detector.training, "tuning": {**record, "of_version": detector.version}}
    return detector.rescanned(*chosen, before, training=training)


def _try(detector: Detector, plan: InferencePlan, batched: Iterable[NDArray[np.uint8]]) -> Tried:
    """A detector's scan by a plan, after a look at each batch that is to be timed: those need the most memory."""
    scan, known = by_plan(detector.scan, plan), detector.calibration_set
    for images in batched:
        scan.look(images)
    return Tried(scan, calibrate(scan, detector.geometry, known.inputs, known.contents))


def _taken(inputs: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    """So many inputs, taken again where there are fewer."""
    return inputs[np.arange(batch) % len(inputs)]


def _timings(tried: Mapping[InferencePlan, Tried], images: NDArray[np.uint8], rounds: int) -> dict[str, Timing]:
    """Of looks at a batch, by the plan's name; a look ends on the CPU, so nothing is left to wait for."""
    return interleave({plan.name: partial(scan.look, images) for plan, (scan, _) in tried.items()}, rounds)


def _quartiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


def _rank_correlation(scores: NDArray[np.float64], others: NDArray[np.float64]) -> float | None:
    if len(scores) < 3 or len(set(scores)) == 1 or len(set(others)) == 1:
        return None
    return float(spearmanr(scores, others).statistic)
