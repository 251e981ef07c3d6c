"""The record of one inspection: what was decided, of what, by what, for whom, and how long it took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from models.prediction import Region

if TYPE_CHECKING:
    from service.inspection import Inspection


class Facts(BaseModel):
    """One inspection without its regions. Scores: higher is more anomalous."""

    # A line of the journal outlives the build that wrote it, so one may find fields that it does not know.
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: UUID
    time: AwareDatetime = Field(description="when it was scored, UTC")
    category: str
    version: int
    operation: int = Field(description="number of the version's run-time settings in force; 0: the version's own")
    shadow_of: UUID | None = Field(
        default=None, description="the inspection that was answered, where this one was scored beside it by a shadow"
    )
    image_sha256: str = Field(description="of the image file as it was sent")
    image_width: int = Field(description="pixels, as displayed")
    image_height: int = Field(description="pixels, as displayed")
    image_score: float = Field(description="the highest score of a window that shows the image")
    p_value: float = Field(description="share of good parts at least as anomalous (split conformal)")
    verdict: str
    image_threshold: float = Field(description="in force: image scores above it are defective")
    pixel_threshold: float = Field(description="in force: the anomaly map's values above it form regions")
    review_low: float | None = Field(default=None, description="in force: scores above it may be for a person to judge")
    review_high: float | None = Field(default=None, description="in force: up to this score")
    part: str | None = Field(default=None, description="the sender's id of the part")
    lot: str | None = Field(default=None, description="the sender's id of the lot")
    caller: str = Field(description="who asked")
    protocol: str = Field(description="by which API")
    output: str = Field(description="what was asked for, such as score or heatmap")
    times: dict[str, float] = Field(description="milliseconds by stage")


class Record(Facts):
    """One inspection. Regions are in pixels of the image as displayed."""

    regions: tuple[Region, ...]


def record_of(inspection: Inspection) -> Record:
    """The record of an inspection."""
    submission, served, prediction = inspection.submission, inspection.served, inspection.prediction
    point = served.point
    width, height = inspection.size
    low, high = point.review_band or (None, None)
    return Record(
        id=inspection.id,
        time=inspection.time,
        category=served.category,
        version=served.version,
        operation=served.operation.number,
        shadow_of=inspection.shadow_of,
        image_sha256=inspection.image_sha256,
        image_width=width,
        image_height=height,
        image_score=prediction.image_score,
        p_value=prediction.p_value,
        verdict=prediction.verdict,
        image_threshold=point.image_threshold,
        pixel_threshold=point.pixel_threshold,
        review_low=low,
        review_high=high,
        regions=prediction.regions,
        part=submission.part,
        lot=submission.lot,
        caller=submission.caller.name,
        protocol=submission.protocol,
        output=submission.output,
        times=inspection.milliseconds,
    )


class Judgement(BaseModel):
    """What a person says of an inspected part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["good", "defective"] = Field(description="what the part is")
    note: str | None = Field(default=None, max_length=2000, pattern=r"^[^\x00]*$", description="why, in words")


class Review(Judgement):
    """A judgement of an inspection. All are kept; the latest counts."""

    time: AwareDatetime = Field(description="when it was given, UTC")
    caller: str = Field(description="who gave it")


class ListedInspection(Facts):
    """One inspection of a list."""

    review: Review | None = Field(default=None, description="the latest")


class RecordedInspection(Record):
    """All that is known of one inspection."""

    reviews: tuple[Review, ...] = Field(description="the latest first")
    image_kept: bool = Field(description="whether the image file is kept")
    heatmap_kept: bool = Field(description="whether a picture of where it deviates is kept")
