"""Metrics of detection and localisation. Scores: higher is more anomalous; labels and masks: True is defective."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

RESAMPLES = 1000  # of the bootstrap: enough for two digits of a 95 % interval


def auroc(labels: Bools, scores: Floats) -> float:
    """Area under the ROC curve: how often a defective image scores above a good one, ties counting half.

    Args:
        labels: (N,), True where defective.
        scores: (N,), finite.

    Raises:
        ValueError: if all labels are the same.
    """
    _require_both(labels)
    return float(roc_auc_score(labels, scores))


def average_precision(labels: Bools, scores: Floats) -> float:
    """Precision averaged over the steps of recall, without interpolation; arguments as for :func:`auroc`."""
    _require_both(labels)
    return float(average_precision_score(labels, scores))


def f1_max(labels: Bools, scores: Floats) -> float:
    """The best F1 of any threshold, chosen on these very scores: an upper bound; arguments as for :func:`auroc`."""
    _require_both(labels)
    precision, recall, _ = precision_recall_curve(labels, scores)
    total = precision + recall
    return float(np.max(2 * precision * recall / np.where(total > 0, total, 1)))


def auroc_interval(
    labels: Bools, scores: Floats, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the AUROC: good and defective images are each resampled among themselves.

    It knows only these images: where no good image scores above a defective one, it shrinks to (1, 1).

    Args:
        labels: (N,), True where defective.
        scores: (N,), finite.
        level: coverage aimed at, in (0, 1).
        resamples: how many samples are drawn.
        seed: of the drawing.

    Raises:
        ValueError: if all labels are the same.
    """
    _require_both(labels)
    generator = np.random.default_rng(seed)
    distinct, ranks = np.unique(scores, return_inverse=True)
    good, defective = ranks[~labels], ranks[labels]
    values = np.empty(resamples)
    for index in range(resamples):
        # Counting equal scores instead of calling auroc: 50 times faster.
        good_counts = np.bincount(generator.choice(good, good.size), minlength=distinct.size)
        defective_counts = np.bincount(generator.choice(defective, defective.size), minlength=distinct.size)
        values[index] = defective_counts @ (np.cumsum(good_counts) - good_counts / 2) / (good.size * defective.size)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def aupro(anomaly_maps: Floats, masks: Bools, limit: float, counted: Bools | None = None) -> float:
    """Area under the per-region overlap curve up to a false-positive rate; see :meth:`RankedPixels.aupro`."""
    return RankedPixels(anomaly_maps, masks, counted).aupro(limit)


class RankedPixels:
    """The pixels of a test set, sorted once for all pixel metrics.

    Exact, with every distinct score a threshold and equal scores entering together. Only scores of defective pixels
    bend a curve, and they are few: the normal pixels, nearly all, need no order of their own beyond one sort by value
    (40 million pixels: seconds and a few hundred MB, where scikit-learn's curves take minutes and several GB).

    Args:
        anomaly_maps: (N, H, W), finite.
        masks: (N, H, W), True where defective; the maps of good images have empty ones.
        counted: (N, H, W), False where a pixel is not the image's (the padding of a letter-box); None counts all.

    Raises:
        ValueError: if shapes differ, a score is not finite, or there is no defective or no normal pixel.
    """

    def __init__(self, anomaly_maps: Floats, masks: Bools, counted: Bools | None = None) -> None:
        if anomaly_maps.ndim != 3 or anomaly_maps.shape != masks.shape:
            raise ValueError(
                f"anomaly maps and masks must both be (N, H, W), not {anomaly_maps.shape} and {masks.shape}"
            )
        if counted is not None:
            if counted.shape != masks.shape:
                raise ValueError(f"counted must be {masks.shape} as the masks are, not {counted.shape}")
            masks = masks & counted
        normal = ~masks if counted is None else ~masks & counted
        if not (masks.any() and normal.any()):
            raise ValueError("pixel metrics need pixels of both kinds, normal and defective")

        self._normal = anomaly_maps[normal]
        self._normal.sort()
        scores = anomaly_maps[masks]
        order = np.argsort(scores)[::-1]
        scores = scores[order]
        extremes = np.array([self._normal[0], self._normal[-1], scores[0], scores[-1]])  # NaN sorts to an end
        if not np.isfinite(extremes).all():
            raise ValueError("anomaly maps hold values that are not finite")

        last = np.append(np.flatnonzero(np.diff(scores)), scores.size - 1)  # of each run of equal scores
        thresholds = scores[last]
        self._true_positives = last + 1
        self._overlap = np.cumsum(_overlap_weights(masks)[order])[last]
        self._false_positives = self._normal.size - np.searchsorted(self._normal, thresholds, side="left")
        self._false_positives_above = self._normal.size - np.searchsorted(self._normal, thresholds, side="right")

    def auroc(self) -> float:
        """Area under the ROC curve over pixels, ties counting half."""
        gain = np.diff(self._true_positives, prepend=0) / self._true_positives[-1]
        middle = (self._false_positives + self._false_positives_above) / (2 * self._normal.size)
        return float(np.sum(gain * (1 - middle)))

    def average_precision(self) -> float:
        """Precision averaged over the steps of recall, without interpolation."""
        gain = np.diff(self._true_positives, prepend=0) / self._true_positives[-1]
        return float(np.sum(gain * self._true_positives / (self._true_positives + self._false_positives)))

    def aupro(self, limit: float) -> float:
        """Area under the per-region overlap curve up to a false-positive rate, divided by that rate.

        The overlap is the share found of a ground-truth region (8-connected), averaged over the regions of all
        images; the false-positive rate is taken over the normal pixels of all images. The curve is linear between
        neighbouring thresholds, at the limit too. Source: Bergmann et al., CVPR 2020 (Uninformed Students), 4.1.

        Args:
            limit: the false-positive rate to integrate to, in (0, 1].

        Returns:
            In [0, 1]; a map of one constant value gives limit / 2.

        Raises:
            ValueError: if the limit is outside (0, 1].
        """
        if not 0 < limit <= 1:
            raise ValueError(f"the limit is a false-positive rate in (0, 1], not {limit}")
        steps = self._overlap.size
        rate, overlap = np.ones(2 * steps + 2), np.ones(2 * steps + 2)
        rate[0] = overlap[0] = overlap[1] = 0
        # Between two defective scores the curve is level; at one, it rises while its tied normal pixels enter with it.
        rate[1:-1:2], rate[2:-1:2] = self._false_positives_above, self._false_positives
        rate[1:-1] /= self._normal.size
        overlap[2:-1:2] = self._overlap
        overlap[3:-1:2] = self._overlap[:-1]
        return _area_up_to(limit, rate, overlap) / limit


def _area_up_to(limit: float, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Trapezoids under the points (x, y), x ascending from 0 to 1, from 0 to ``limit``."""
    inside = int(np.searchsorted(x, limit, side="right"))
    area = float(np.trapezoid(y[:inside], x[:inside]))
    if inside < x.size:
        left = inside - 1
        width = limit - x[left]
        slope = (y[inside] - y[left]) / (x[inside] - x[left])
        area += float(width * (y[left] + slope * width / 2))
    return area


def _overlap_weights(masks: Bools) -> NDArray[np.float64]:
    """What each defective pixel, in the order of ``maps[masks]``, adds to the overlap averaged over all regions."""
    weights: list[NDArray[np.float64]] = []
    regions = 0
    for mask in masks:
        if mask.any():
            count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            areas = np.bincount(labels.ravel())
            weights.append(1 / areas[labels[mask]])
            regions += count - 1  # label 0 is what is not defective
    return np.concatenate(weights) / regions


def _require_both(labels: Bools) -> None:
    defective = int(np.count_nonzero(labels))
    if defective in (0, labels.size):
        raise ValueError(f"needs both good and defective images, got {labels.size - defective} and {defective}")
