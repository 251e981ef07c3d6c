"""A new version of a category out of what people said of its inspections."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from models.calibration import OperatingPoint
from models.extension import MOST_IMAGES
from service.api.inspections import Recorded
from service.errors import (
    CATEGORY_UNAVAILABLE,
    EXTENSION_UNDER_WAY,
    INSPECTIONS_UNUSABLE,
    INVALID_REQUEST,
    NOT_EXTENDABLE,
    RECORDS_OFF,
    RECORDS_UNAVAILABLE,
    STORE_READ_ONLY,
    STORE_UNAVAILABLE,
    UNKNOWN_CATEGORY,
    VERSION_UNAVAILABLE,
    WORKER_UNAVAILABLE,
    problem_responses,
)
from service.extension import extend_active
from service.inspection import service_of
from service.security import Scope, requires

router = APIRouter(prefix="/v1/categories/{category}", tags=["versions"], dependencies=[Depends(requires(Scope.ADMIN))])


def _each_once(ids: list[UUID]) -> list[UUID]:
    if len(set(ids)) < len(ids):
        raise ValueError("an inspection is named twice")
    return ids


class NewVersion(BaseModel):
    """What a version is made of, besides the active one."""

    model_config = ConfigDict(extra="forbid")

    add_inspections: Annotated[list[UUID], AfterValidator(_each_once)] = Field(
        min_length=1, max_length=MOST_IMAGES, description="reviewed good, with their images kept"
    )


class ExtendedVersion(BaseModel):
    """A version that was published and is not active yet."""

    category: str
    version: int
    based_on: int = Field(description="the version that it was made of")
    images: int = Field(description="how many were added")
    bank: int = Field(description="embeddings that its bank has or stands for")
    operating_point: OperatingPoint = Field(description="thresholds for the false-reject rate of the one before")


@router.post(
    "/versions",
    status_code=201,
    responses=problem_responses(
        UNKNOWN_CATEGORY,
        CATEGORY_UNAVAILABLE,
        VERSION_UNAVAILABLE,
        RECORDS_OFF,
        RECORDS_UNAVAILABLE,
        NOT_EXTENDABLE,
        INSPECTIONS_UNUSABLE,
        EXTENSION_UNDER_WAY,
        STORE_READ_ONLY,
        STORE_UNAVAILABLE,
        WORKER_UNAVAILABLE,
        INVALID_REQUEST,
    ),
)
async def extend_version(category: str, wanted: NewVersion, records: Recorded, request: Request) -> ExtendedVersion:
    """Add all windows of images that were reviewed good to the bank of the active version, as a new version.

    Nothing is trained; thresholds are set anew on the calibration images. The answer comes when it is published, which
    takes as long as scoring the new images and the calibration images. It does not become active: compare it first.
    """
    service = service_of(request)
    version, made, before = await extend_active(
        service, records, category, wanted.add_inspections, request.state.caller.name
    )
    request.state.log.update(category=category, version=version, based_on=before)
    return ExtendedVersion(
        category=category,
        version=version,
        based_on=before,
        images=len(wanted.add_inspections),
        bank=made.scan.members[0].density.samples,
        operating_point=made.operating_point,
    )
