"""What a detector says of one image: scores, verdict and regions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from models.geometry import Box
from models.images import Placement


class Verdict(StrEnum):
    """``review`` is the band around the threshold, empty unless the operating point sets one.

    ``invalid`` is an image that does not show the product, whatever its score.
    """

    GOOD = "good"
    DEFECTIVE = "defective"
    REVIEW = "review"
    INVALID = "invalid"


class Point(BaseModel):
    """A pixel: column ``x``, row ``y``."""

    model_config = ConfigDict(frozen=True)

    x: int
    y: int


class Region(BaseModel):
    """A connected area of the anomaly map above the pixel threshold, in pixels of the original image as displayed.

    Attributes:
        box: the smallest rectangle around the area.
        area: pixels of the original image that the area covers.
        peak: where the anomaly map is highest inside the area.
        peak_score: the anomaly map's value there.
        contour: the outer boundary, as a closed polygon.
    """

    model_config = ConfigDict(frozen=True)

    box: Box
    area: int
    peak: Point
    peak_score: float
    contour: tuple[Point, ...]


@dataclass(frozen=True)
class Prediction:
    """One scored image. All three scores: higher is more anomalous.

    Attributes:
        score_map: (57, 57) float32, the score of every window.
        image_score: its maximum over the windows of the image, not of a letter-box's padding.
        image_score_error: how far that may be off at 95 % confidence, where the density samples its bank; else 0.
        anomaly_map: (256, 256) float32, the Gaussian-upsampled score map, in the pixels of the detector's input.
        placement: how the original image lies in that input.
        p_value: split-conformal p-value of ``image_score``, in (0, 1].
        verdict: good, defective, review or invalid.
        regions: the highest peak first, at most ``MAX_REGIONS``; never empty where the verdict is not good.
        invalidity: how far the image is from showing the product, in multiples of the distance from which on it is
            invalid; None where the detector does not tell.
        summary: (D,) what ``models.validity.summarise`` makes of the whole image.
    """

    score_map: NDArray[np.float32]
    image_score: float
    image_score_error: float
    anomaly_map: NDArray[np.float32]
    placement: Placement
    p_value: float
    verdict: Verdict
    regions: tuple[Region, ...]
    invalidity: float | None = None
    summary: NDArray[np.float32] | None = None
