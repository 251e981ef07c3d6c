"""What scores mean: p-values and thresholds from good images that nothing else has touched (split conformal)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.stats import beta

from models.prediction import Verdict

TARGET_RATE = 0.01  # the false-reject rate aimed at where the number of images allows it
INTERVAL = 0.90  # coverage of the interval of a threshold's true rate


class OperatingPoint(BaseModel):
    """Where a category's detector decides; all values are scores, higher being more anomalous.

    Attributes:
        image_threshold: an image score above it is defective.
        pixel_threshold: an anomaly map's values above it form regions.
        false_reject_rate: the share of good parts that the thresholds were set to reject.
        review_band: (low, high) around the image threshold; scores in it are for a person to judge.
        invalidity_threshold: an image whose invalidity is above it is invalid; a large value lets every image through.
    """

    # A NaN threshold would pass every part.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_threshold: float
    pixel_threshold: float
    false_reject_rate: float = Field(gt=0, lt=1)
    review_band: tuple[float, float] | None = None
    invalidity_threshold: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _band_holds_threshold(self) -> OperatingPoint:
        if self.review_band is not None and not self.review_band[0] <= self.image_threshold <= self.review_band[1]:
            raise ValueError(f"review_band {self.review_band} does not hold image_threshold {self.image_threshold}")
        return self

    def verdict(self, image_score: float, invalidity: float | None = None) -> Verdict:
        """The decision on one image; one that does not show the product is invalid, whatever its score."""
        if invalidity is not None and invalidity > self.invalidity_threshold:
            return Verdict.INVALID
        if self.review_band is not None and self.review_band[0] < image_score <= self.review_band[1]:
            return Verdict.REVIEW
        return Verdict.DEFECTIVE if image_score > self.image_threshold else Verdict.GOOD


@dataclass(frozen=True)
class Calibration:
    """Scores of n good images that touched neither the encoder nor the density.

    Attributes:
        image_scores: (n,) their image scores.
        map_maxima: (n,) the largest value of each one's anomaly map.

    Raises:
        ValueError: if there is no image, or a score is not finite.
    """

    image_scores: NDArray[np.float64]
    map_maxima: NDArray[np.float64]

    def __post_init__(self) -> None:
        if len(self.image_scores) == 0 or len(self.image_scores) != len(self.map_maxima):
            raise ValueError(
                f"calibration needs both scores of at least one good image, not {len(self.image_scores)} image scores "
                f"and {len(self.map_maxima)} map maxima"
            )
        if not (np.isfinite(self.image_scores).all() and np.isfinite(self.map_maxima).all()):
            raise ValueError("calibration scores must be finite; found NaN or infinity")

    def __len__(self) -> int:
        return len(self.image_scores)

    def p_value(self, image_score: float) -> float:
        """Split-conformal p-value: the share of good parts at least as anomalous, in [1 / (n + 1), 1]."""
        return float((1 + np.count_nonzero(self.image_scores >= image_score)) / (len(self) + 1))

    @property
    def smallest_rate(self) -> float:
        """The smallest false-reject rate that n images can vouch for: 1 / (n + 1)."""
        return 1 / (len(self) + 1)

    @property
    def default_rate(self) -> float:
        """1 %, or the smallest honest rate where that is larger."""
        return max(TARGET_RATE, self.smallest_rate)

    def operating_point(self, rate: float | None = None) -> OperatingPoint:
        """Thresholds that reject a new good part with a probability of at most ``rate``.

        Args:
            rate: false-reject rate; ``default_rate`` if None.

        Raises:
            ValueError: if the rate is below ``smallest_rate`` or not below 1.
        """
        rate = self.default_rate if rate is None else rate
        rank = threshold_rank(len(self), rate)
        return OperatingPoint(
            image_threshold=float(np.sort(self.image_scores)[rank - 1]),
            pixel_threshold=float(np.sort(self.map_maxima)[rank - 1]),
            false_reject_rate=rate,
        )

    def rate_of(self, image_threshold: float) -> float:
        """The smallest false-reject rate that these images vouch for at a threshold: (1 + those above) / (n + 1).

        Where all are above it, no rate below 1 is vouched for; then it is n / (n + 1), that of the lowest score.
        """
        above = int(np.count_nonzero(self.image_scores > image_threshold))
        return min(1 + above, len(self)) / (len(self) + 1)

    def rate_interval(self, rate: float) -> tuple[float, float]:
        """Central 90 % interval of the true false-reject rate of the threshold set for ``rate``.

        The rate of the rank-k threshold of n images follows Beta(n + 1 - k, k): for n = 99 at 1 %, 0.05 to 3.0 %.
        """
        rank = threshold_rank(len(self), rate)
        tail = (1 - INTERVAL) / 2
        low, high = beta.ppf([tail, 1 - tail], len(self) + 1 - rank, rank)
        return float(low), float(high)


def threshold_rank(count: int, rate: float) -> int:
    """The k whose k-th smallest of ``count`` scores is the threshold for ``rate``: ceil((n + 1)(1 - rate)).

    Raises:
        ValueError: if the rate is below 1 / (n + 1) or not below 1.
    """
    # The tolerance keeps rounding from asking for one rank more where (n + 1)(1 - rate) is a whole number.
    if not 0 < rate < 1 or (rank := math.ceil((count + 1) * (1 - rate) - 1e-9)) > count:
        raise ValueError(
            f"a false-reject rate of {rate:g} cannot be set from {count} calibration images: accepted are "
            f"{1 / (count + 1):.3g} to below 1; hold out more good images for a smaller rate"
        )
    return max(rank, 1)
