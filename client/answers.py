"""What the service answers. A field that a newer service adds is kept in ``model_extra``."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Verdict(StrEnum):
    """``review`` is a band around the threshold, if one is set; ``invalid`` is not a picture of this product."""

    GOOD = "good"
    DEFECTIVE = "defective"
    REVIEW = "review"
    INVALID = "invalid"


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Box(_Answer):
    """A rectangle of whole pixels; ``x`` and ``y`` are its first column and row."""

    x: int
    y: int
    width: int
    height: int


class Point(_Answer):
    """A pixel: column ``x``, row ``y``."""

    x: int
    y: int


class Region(_Answer):
    """An area above the pixel threshold, in pixels of the image as displayed (after its EXIF orientation)."""

    box: Box
    area: int
    peak: Point
    peak_score: float
    contour: tuple[Point, ...]


class ImageSize(_Answer):
    """Size of the image as displayed."""

    width: int
    height: int


class Times(_Answer):
    """Milliseconds by stage of the service.

    Attributes:
        place: resizing to the detector's input; part of an explanation's score.
        judge: verdict and regions; as ``place``.
    """

    upload: float
    decode: float
    place: float = 0
    queue: float
    score: float
    judge: float = 0
    total: float


class _Inspection(_Answer):
    """What every answer says of its image. Scores: higher is more anomalous.

    Attributes:
        operation: number of the version's run-time settings that decided; 0 for its own.
        image_score: the highest score of a window.
        threshold: image scores above it are defective.
        pixel_threshold: the anomaly map's values above it form regions.
        p_value: share of good parts at least as anomalous.
    """

    id: UUID
    category: str
    version: int
    operation: int
    image_score: float
    threshold: float
    pixel_threshold: float
    p_value: float
    verdict: Verdict
    image: ImageSize


class Score(_Inspection):
    """One inspection.

    Attributes:
        image_score_error: how far the score may be off at 95 % confidence, where the version samples its bank.
        invalidity: how far from showing this product at all; above the invalidity threshold in force, 1 as trained, the
            verdict is invalid.
        regions: the highest peak first.
        score_map: score of every window, if asked for.
    """

    image_score_error: float = 0.0
    invalidity: float | None = None
    regions: tuple[Region, ...]
    times: Times
    score_map: list[list[float]] | None = None


class _Picture(_Inspection):
    """A PNG and the numbers that came with it."""

    png: bytes


class Overlay(_Picture):
    """The heatmap over the original image; the anomaly map's values at the first and at the last colour."""

    scale_start: float
    scale_end: float


class RawMap(_Picture):
    """The anomaly map as a 16-bit grayscale PNG: value = ``map_minimum`` + code * ``map_step``.

    Attributes:
        map_content: where the image lies in the map.
    """

    map_minimum: float
    map_step: float
    map_content: Box


class ExplanationPicture(_Picture):
    """What made the score of the worst window, over the original image.

    Attributes:
        method: how it was found.
        window: the window that has the image score, in pixels of the image as displayed.
        full_colour: the attribution, above or below 0, from which on a pixel's colour is full.
        baseline_score: integrated gradients: the score of the window's mean colour.
        attribution_sum: integrated gradients: what all pixels add, about ``image_score - baseline_score``.
    """

    method: str
    window: Box
    full_colour: float
    baseline_score: float | None = None
    attribution_sum: float | None = None


class Category(_Answer):
    """A category of the service.

    Attributes:
        state: only one that is "ready" scores.
        version: the active one.
        shadow: the version that scores beside it and only records.
        reason: why it could not be loaded, or why what is stored is not what is served.
    """

    category: str
    state: str
    version: int | None = None
    shadow: int | None = None
    reason: str | None = None


class CategoryDetails(Category):
    """A category, and its detector where that is ready.

    Attributes:
        operation: number of the run-time settings in force.
        detector: what it is, and how it decides where no operation says otherwise.
    """

    operation: int | None = None
    detector: dict[str, Any] | None = None


class CategoryList(_Answer):
    """Every category, by name; and why the service cannot follow its store of models, where it cannot."""

    categories: tuple[Category, ...]
    store_problem: str | None = None


class Health(_Answer):
    """Whether the service lives, and why not."""

    healthy: bool
    reason: str | None = None


class Readiness(_Answer):
    """Whether the service can score, and why not.

    Attributes:
        warning: what is wrong with the models although it can.
        categories: empty also where callers need keys, because nobody needs one to ask this.
    """

    ready: bool
    reason: str | None = None
    warning: str | None = None
    categories: tuple[Category, ...] = ()


Method = Literal["integrated_gradients", "grad_cam"]
