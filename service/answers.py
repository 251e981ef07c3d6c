"""An inspection as it is told: to who asked for the score, and to who is told of results as they come."""

from __future__ import annotations

from uuid import UUID

from pydantic import BaseModel, Field

from models.prediction import Region, Verdict
from models.regions import MAX_REGIONS
from service.inspection import Inspection


class ImageSize(BaseModel):
    """Size of the image as displayed, after its EXIF orientation."""

    width: int
    height: int


class Times(BaseModel):
    """Milliseconds by stage."""

    upload: float = Field(description="reading the request's body")
    decode: float = Field(description="decoding the image, the wait for a decoder included")
    place: float = Field(default=0, description="resizing it to the detector's input; part of an explanation's score")
    queue: float = Field(description="waiting for the worker")
    score: float = Field(description="on the worker, with the others of its batch")
    judge: float = Field(default=0, description="verdict and regions, the wait for a thread included; as place")
    total: float = Field(description="from the request's arrival to the verdict")


class Score(BaseModel):
    """One inspection. Scores: higher is more anomalous. Regions are in pixels of the image as displayed."""

    id: UUID
    category: str
    version: int
    operation: int = Field(description="number of the version's run-time settings that decided; 0: its own")
    image_score: float = Field(description="the highest score of a window that shows the image")
    image_score_error: float = Field(
        default=0.0, description="how far that may be off at 95 % confidence, where the version samples its bank"
    )
    threshold: float = Field(description="image scores above it are defective")
    pixel_threshold: float = Field(description="the anomaly map's values above it form regions")
    p_value: float = Field(description="share of good parts at least as anomalous (split conformal)")
    invalidity: float | None = Field(
        default=None,
        description="how far the image is from showing this product at all; above the invalidity threshold in force, "
        "1 as trained, the verdict is invalid",
    )
    verdict: Verdict
    regions: tuple[Region, ...] = Field(
        description=f"the highest peak first; of more than {MAX_REGIONS}, those with the highest peaks"
    )
    image: ImageSize
    times: Times
    score_map: list[list[float]] | None = Field(
        default=None, description="score of every window, padding included, if asked for"
    )


def score_of(inspection: Inspection, *, with_map: bool = False) -> Score:
    """The score of an inspection, with the score map if that is asked for."""
    served, prediction = inspection.served, inspection.prediction
    width, height = inspection.size
    return Score(
        id=inspection.id,
        category=served.category,
        version=served.version,
        operation=served.operation.number,
        image_score=prediction.image_score,
        image_score_error=prediction.image_score_error,
        threshold=served.point.image_threshold,
        pixel_threshold=served.point.pixel_threshold,
        p_value=prediction.p_value,
        invalidity=prediction.invalidity,
        verdict=prediction.verdict,
        regions=prediction.regions,
        image=ImageSize(width=width, height=height),
        times=_times(inspection),
        score_map=prediction.score_map.tolist() if with_map else None,
    )


def _times(inspection: Inspection) -> Times:
    stages = inspection.milliseconds
    if "explain" in stages:  # the explanation scores as well
        stages["score"] = stages.pop("explain")
    return Times(**stages)
