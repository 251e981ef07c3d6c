"""How much an AUROC moves from one way of scoring to another on the same images, and how sure that is.

Two ways of scoring share their images, so most of what chance makes of an AUROC is the same for both, and their
difference is far better known than either. Both are taken over the same resampled images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.metrics import RESAMPLES, Bools, Floats

LEVELS = 4096  # defective pixels' scores that are told apart; with more, an AUROC moves by 1.3e-4 at the very most


@dataclass(frozen=True)
class Wins:
    """How what is defective in each image ranks against what is normal in each, so that images can be weighed.

    Attributes:
        pairs: (N, N), pairs of a defective member of the row's image above a normal one of the column's, ties half.
        defective: (N,), how many members of each image are defective; a member is the image itself, or a pixel.
        normal: (N,), how many are not.
    """

    pairs: NDArray[np.float64]
    defective: NDArray[np.float64]
    normal: NDArray[np.float64]

    @classmethod
    def of_images(cls, labels: Bools, scores: Floats) -> Wins:
        """Of image scores (N,); labels (N,) are True where defective."""
        above = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
        return cls(above * np.outer(labels, ~labels), labels.astype(np.float64), (~labels).astype(np.float64))

    @classmethod
    def of_pixels(cls, anomaly_maps: Floats, masks: Bools, counted: Bools | None = None) -> Wins:
        """Of anomaly maps (N, H, W), as ``RankedPixels`` takes them, but of the defective pixels' scores ``LEVELS``
        quantiles alone are told apart; pixels between two of them count as ties.
        """
        defective = masks if counted is None else masks & counted
        normal = ~masks if counted is None else ~masks & counted
        levels = np.quantile(anomaly_maps[defective], np.linspace(0, 1, LEVELS), method="nearest")
        edges = np.unique(np.concatenate([levels, np.nextafter(levels, np.inf, dtype=levels.dtype)]))
        found, missed = (np.zeros((len(masks), len(edges) + 1)) for _ in range(2))
        for number, scores in enumerate(anomaly_maps):
            places = np.searchsorted(edges, scores, side="right")
            found[number] = np.bincount(places[defective[number]], minlength=len(edges) + 1)
            missed[number] = np.bincount(places[normal[number]], minlength=len(edges) + 1)
        below = np.cumsum(missed, axis=1) - missed / 2
        return cls(found @ below.T, found.sum(axis=1), missed.sum(axis=1))

    def auroc(self, counts: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """The AUROC of samples that hold each image so many times: counts (R, N) -> (R,); of the images, without."""
        counts = np.ones((1, len(self.pairs))) if counts is None else counts
        won = ((counts @ self.pairs) * counts).sum(axis=1)
        share: NDArray[np.float64] = won / ((counts @ self.defective) * (counts @ self.normal))
        return share


def resampled(labels: Bools, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """How often each image is in each sample: (R, N); good and defective ones are resampled among themselves.

    The same labels and seed give the same samples.
    """
    generator = np.random.default_rng(seed)
    counts = np.empty((resamples, len(labels)))
    for kind in (labels, ~labels):
        size = int(kind.sum())
        counts[:, kind] = generator.multinomial(size, np.full(size, 1 / size), size=resamples)
    return counts


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """The quantiles between which ``level`` of the values (R,) lie."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
