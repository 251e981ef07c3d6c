"""How a version decides, changed while it serves: thresholds, review band, region of interest, each change recorded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from models.calibration import OperatingPoint
from models.detector import Detector
from models.images import decode_mask
from models.operation import Note, Operation, Operations, revised
from models.region_of_interest import RegionOfInterest
from service.api.scoring import PngResponse
from service.errors import (
    IMAGE_TOO_LARGE,
    INVALID_REQUEST,
    MALFORMED_MULTIPART,
    NO_REGION_OF_INTEREST,
    STORE_READ_ONLY,
    UNKNOWN_OPERATION,
    UNREADABLE_IMAGE,
    UNSUPPORTED_IMAGE,
    UNSUPPORTED_MEDIA_TYPE,
    UPLOAD_TIMEOUT,
    UPLOAD_TOO_LARGE,
    ProblemError,
    problem_responses,
)
from service.inspection import image_problems, in_pool, service_of
from service.registry import SERVED_PROBLEMS, Served
from service.security import Scope, requires
from service.submissions import Version
from service.uploads import REQUEST_BODY, read_upload

router = APIRouter(prefix="/v1/categories/{category}", tags=["operation"])

_READ, _CHANGE = [Depends(requires())], [Depends(requires(Scope.ADMIN))]
_CHANGE_PROBLEMS = (*SERVED_PROBLEMS, STORE_READ_ONLY, INVALID_REQUEST)
_UPLOAD_PROBLEMS = (
    MALFORMED_MULTIPART,
    UPLOAD_TIMEOUT,
    UPLOAD_TOO_LARGE,
    IMAGE_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    UNSUPPORTED_IMAGE,
    UNREADABLE_IMAGE,
)
_MASK = "One image, stored without loss: PNG, BMP, TIFF. A JPEG is refused."
_PNG: dict[int | str, dict[str, Any]] = {200: {"description": "The mask: 1 bit a pixel, white inside."}}


class OperationDetails(BaseModel):
    """One numbered setting of how a version decides. Scores: higher is more anomalous."""

    number: int = Field(description="0: as the version was trained")
    image_threshold: float = Field(description="image scores above it are defective")
    pixel_threshold: float = Field(description="the anomaly map's values above it form regions")
    false_reject_rate: float = Field(
        description="the share of good parts that the image threshold was set to reject; of one set by hand, the "
        "smallest that the calibration images vouch for"
    )
    review_band: tuple[float, float] | None = Field(default=None, description="scores in it are for a person to judge")
    invalidity_threshold: float = Field(description="an image whose invalidity is above it is invalid")
    region_of_interest_share: float | None = Field(default=None, description="of the image; without one all counts")
    author: str | None = None
    created: AwareDatetime
    note: str
    restores: int | None = Field(default=None, description="the earlier operation whose settings these are again")


class OperationAnswer(BaseModel):
    """What is in force for a version."""

    category: str
    version: int
    operation: OperationDetails
    history: list[OperationDetails] | None = Field(default=None, description="all there were, the latest first")


class OperationQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Version | None = Field(default=None, description="by default the active one")


class HistoryQuery(OperationQuery):
    history: bool = Field(default=False, description="add all operations there were")


class NewOperation(BaseModel):
    """What changes. What is not given stays, but for a review band where thresholds are derived from a rate."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    false_reject_rate: float | None = Field(default=None, gt=0, lt=1, description="derive both thresholds from it")
    image_threshold: float | None = None
    pixel_threshold: float | None = None
    review_band: tuple[float, float] | None = Field(default=None, description="null: none")
    invalidity_threshold: float | None = Field(
        default=None, gt=0, description="1 is what was calibrated; more lets more images through"
    )
    restore: int | None = Field(
        default=None, ge=0, lt=10**18, description="take all settings of this earlier operation again; 0: as trained"
    )
    note: Note = Field(default="", description="why, for the record")

    @model_validator(mode="after")
    def _fits_together(self) -> NewOperation:
        given = self.model_fields_set - {"note"}
        if not given:
            raise ValueError("nothing is changed: give false_reject_rate, thresholds, review_band or restore")
        if "restore" in given and given != {"restore"}:
            raise ValueError("restore takes all settings from one operation: give it alone")
        for name in ("false_reject_rate", "image_threshold", "pixel_threshold", "invalidity_threshold", "restore"):
            if name in given and getattr(self, name) is None:
                raise ValueError(f"{name} is null: leave it out, or give a number")
        if "false_reject_rate" in given and given & {"image_threshold", "pixel_threshold"}:
            raise ValueError("give false_reject_rate, or the thresholds that it would set, not both")
        return self


@router.get("/operation", responses=problem_responses(*SERVED_PROBLEMS, INVALID_REQUEST), dependencies=_READ)
async def show_operation(category: str, query: Annotated[HistoryQuery, Query()], request: Request) -> OperationAnswer:
    """How a version decides now, and with `?history=true` how it did before."""
    registry = service_of(request).registry
    served = await registry.served(category, query.version)
    history = await registry.operations(served) if query.history else None
    return _answer(served, history)


@router.put("/operation", responses=problem_responses(*_CHANGE_PROBLEMS, UNKNOWN_OPERATION), dependencies=_CHANGE)
async def change_operation(
    category: str, change: NewOperation, query: Annotated[OperationQuery, Query()], request: Request
) -> OperationAnswer:
    """Decide otherwise from the next request on. Nothing is overwritten: each change is an operation of its own."""
    author = request.state.caller.name
    if (number := change.restore) is not None:
        return await _record(
            category,
            query,
            request,
            lambda log, detector: log.restore(detector, number, author=author, note=change.note),
        )
    return await _operate(category, query, request, partial(_changed, change, author))


@router.get(
    "/region-of-interest",
    responses={**_PNG, **problem_responses(*SERVED_PROBLEMS, INVALID_REQUEST, NO_REGION_OF_INTEREST)},
    response_class=PngResponse,
    dependencies=_READ,
)
async def show_region(category: str, query: Annotated[OperationQuery, Query()], request: Request) -> Response:
    """The mask outside which nothing counts."""
    served = await service_of(request).registry.served(category, query.version)
    return PngResponse(_region_of(served).png)


@router.put(
    "/region-of-interest",
    responses=problem_responses(*_CHANGE_PROBLEMS, *_UPLOAD_PROBLEMS),
    openapi_extra={"requestBody": {**REQUEST_BODY["requestBody"], "description": _MASK}},
    dependencies=_CHANGE,
)
async def set_region(category: str, query: Annotated[OperationQuery, Query()], request: Request) -> OperationAnswer:
    """Let only what a mask does not show black count: a PNG, stretched over the image as displayed.

    The thresholds are set anew, from what the calibration images show inside, for the same false-reject rate.
    """
    service = service_of(request)
    await service.registry.served(category, query.version)  # refuse before the body is read
    data = await read_upload(
        request, max_bytes=service.settings.max_upload_bytes, timeout_s=service.settings.request_timeout_s
    )
    region = await in_pool(service, partial(_region, data, service.settings.max_pixels))
    author = request.state.caller.name
    return await _operate(
        category, query, request, lambda detector, before: revised(detector, before, author=author, region=region)
    )


@router.delete(
    "/region-of-interest",
    responses=problem_responses(*_CHANGE_PROBLEMS, NO_REGION_OF_INTEREST),
    dependencies=_CHANGE,
)
async def remove_region(category: str, query: Annotated[OperationQuery, Query()], request: Request) -> OperationAnswer:
    """Let all of the image count again; the thresholds are set anew for the same false-reject rate."""
    _region_of(await service_of(request).registry.served(category, query.version))
    author = request.state.caller.name
    return await _operate(
        category, query, request, lambda detector, before: revised(detector, before, author=author, region=None)
    )


async def _operate(
    category: str, query: OperationQuery, request: Request, make: Callable[[Detector, Operation], Operation]
) -> OperationAnswer:
    return await _record(category, query, request, lambda log, detector: log.record(detector, partial(make, detector)))


async def _record(
    category: str, query: OperationQuery, request: Request, record: Callable[[Operations, Detector], Operation]
) -> OperationAnswer:
    served = await service_of(request).registry.operate(category, query.version, record)
    request.state.log.update(category=category, version=served.version, operation=served.operation.number)
    return _answer(served)


def _changed(change: NewOperation, author: str, detector: Detector, before: Operation) -> Operation:
    """What a request makes of the operation in force.

    Raises:
        ValueError: the rate cannot be vouched for, or the review band does not hold the threshold.
    """
    given = change.model_fields_set - {"note"}
    values = {name: getattr(change, name) for name in given & OperatingPoint.model_fields.keys()}
    if change.false_reject_rate is not None:
        point = revised(detector, before, author=author, rate=change.false_reject_rate).operating_point
        values = point.model_dump() | values
    else:
        values = before.operating_point.model_dump() | values
        if change.image_threshold is not None:
            calibration = detector.calibration_for(before.region_of_interest)
            values["false_reject_rate"] = calibration.rate_of(change.image_threshold)
    return before.model_copy(
        update={
            "operating_point": OperatingPoint.model_validate(values),
            "author": author,
            "created": datetime.now(UTC),
            "note": change.note,
            "restores": None,
        }
    )


def _region(data: bytes, max_pixels: int) -> RegionOfInterest:
    with image_problems():
        mask = decode_mask(data, max_pixels=max_pixels)
    try:
        return RegionOfInterest.of_mask(mask)
    except ValueError as error:
        raise ProblemError(INVALID_REQUEST, f"{error}; make white what shall count") from error


def _region_of(served: Served) -> RegionOfInterest:
    if (region := served.operation.region_of_interest) is None:
        which = f"version {served.version} of {served.category!r}"
        raise ProblemError(NO_REGION_OF_INTEREST, f"{which} has no region of interest: all of the image counts")
    return region


def _answer(served: Served, history: list[Operation] | None = None) -> OperationAnswer:
    return OperationAnswer(
        category=served.category,
        version=served.version,
        operation=_details(served.operation),
        history=None if history is None else [_details(operation) for operation in history],
    )


def _details(operation: Operation) -> OperationDetails:
    region = operation.region_of_interest
    return OperationDetails(
        number=operation.number,
        **operation.operating_point.model_dump(),
        region_of_interest_share=region.share if region else None,
        author=operation.author,
        created=operation.created,
        note=operation.note,
        restores=operation.restores,
    )
