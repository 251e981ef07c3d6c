"""What was inspected: lists, single inspections with their pictures, and what people say of them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from service.errors import (
    INVALID_REQUEST,
    PICTURE_NOT_KEPT,
    RECORDS_OFF,
    RECORDS_UNAVAILABLE,
    UNKNOWN_INSPECTION,
    ProblemError,
    problem_responses,
)
from service.inspection import service_of
from service.records import queries
from service.records.pictures import Picture
from service.records.record import Facts, Judgement, ListedInspection, Record, RecordedInspection, Review
from service.records.sink import Records
from service.security import Scope, requires

router = APIRouter(prefix="/v1/inspections", tags=["inspections"], dependencies=[Depends(requires(Scope.REVIEW))])

Found = TypeVar("Found", Record, Review)

_PROBLEMS = problem_responses(RECORDS_OFF, INVALID_REQUEST, RECORDS_UNAVAILABLE)
_OF_ONE = problem_responses(RECORDS_OFF, UNKNOWN_INSPECTION, INVALID_REQUEST, RECORDS_UNAVAILABLE)
_OF_PICTURES = problem_responses(
    RECORDS_OFF, UNKNOWN_INSPECTION, PICTURE_NOT_KEPT, INVALID_REQUEST, RECORDS_UNAVAILABLE
)

_CSV = "text/csv"
_CSV_PAGE = 1000
_CSV_FACTS = [name for name in Facts.model_fields if name != "times"]
# A spreadsheet takes a cell that begins so for a formula; the last four are their full-width forms.
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


class ListQuery(queries.Filters):
    cursor: int | None = Field(
        default=None, ge=1, le=queries.LARGEST_SEQUENCE, description="`next` of the page before; JSON only"
    )
    limit: int = Field(default=50, ge=1, le=200, description="inspections of a page; JSON only")
    format: Literal["json", "csv"] | None = Field(
        default=None, description="csv: all that match, as a file; unset: by the header Accept"
    )


class InspectionPage(BaseModel):
    """Inspections, the latest first."""

    inspections: list[ListedInspection]
    next: int | None = Field(default=None, description="the cursor of the page after; none on the last")


async def _records(request: Request) -> Records:
    if (records := service_of(request).records) is None:
        raise ProblemError(RECORDS_OFF, "this service records nothing (PLUMBLINE_RECORDS is 'none')")
    return records


Recorded = Annotated[Records, Depends(_records)]


@router.get(
    "",
    response_model=InspectionPage,
    responses={200: {"content": {_CSV: {"schema": {"type": "string"}}}}, **_PROBLEMS},
)
async def list_inspections(query: Annotated[ListQuery, Query()], records: Recorded, request: Request) -> Response:
    """Inspections that match, the latest first: a page of them as JSON, or all as CSV.

    Following `next` shows each inspection once, whatever is inspected meanwhile.
    """
    accepted = request.headers.get("accept", "")
    if query.format == "csv" or (query.format is None and _CSV in accepted):
        first = await records.read(partial(_csv_rows, records, query, queries.LARGEST_SEQUENCE))
        disposition = 'attachment; filename="inspections.csv"'
        return StreamingResponse(
            _csv(records, query, first),
            media_type=f"{_CSV}; charset=utf-8",
            headers={"Content-Disposition": disposition},
        )

    def read() -> bytes:  # to its bytes there too: a page may be long, and the loop has others to serve
        with records.database.begin() as connection:
            found, following = queries.page(connection, query, query.cursor or queries.LARGEST_SEQUENCE, query.limit)
        return InspectionPage(inspections=found, next=following).model_dump_json(exclude_none=True).encode()

    return Response(await records.read(read), media_type="application/json")


@router.get("/{inspection}", responses=_OF_ONE, response_model_exclude_none=True)
async def show_inspection(inspection: UUID, records: Recorded) -> RecordedInspection:
    """One inspection, with its regions and reviews."""

    def read() -> RecordedInspection:
        with records.database.begin() as connection:
            record = _found(queries.find(connection, inspection), inspection)
            reviews = queries.reviews_of(connection, inspection)
        image, heatmap = (find(inspection, record.time) for find in (records.pictures.image, records.pictures.heatmap))
        return RecordedInspection(
            **dict(record), reviews=reviews, image_kept=image is not None, heatmap_kept=heatmap is not None
        )

    return await records.read(read)


@router.get(
    "/{inspection}/image",
    responses={200: {"description": "The file.", "content": {"image/*": {}}}, **_OF_PICTURES},
    response_class=Response,
)
async def show_image(inspection: UUID, records: Recorded) -> Response:
    """The image file of an inspection as it was sent, where the retention rule keeps it."""
    return await _picture(inspection, records, "image")


@router.get(
    "/{inspection}/heatmap",
    responses={200: {"description": "The picture.", "content": {"image/png": {}}}, **_OF_PICTURES},
    response_class=Response,
)
async def show_heatmap(inspection: UUID, records: Recorded) -> Response:
    """Where an inspected part deviates, over its image, where the retention rule keeps it."""
    return await _picture(inspection, records, "heatmap")


@router.post(
    "/{inspection}/review",
    status_code=201,
    responses=_OF_ONE,
    response_model_exclude_none=True,
)
async def review(inspection: UUID, judgement: Judgement, records: Recorded, request: Request) -> Review:
    """Say what an inspected part is; every review is kept, and the latest counts."""
    caller = request.state.caller.name

    def write() -> Review:
        with records.database.begin() as connection:
            added = queries.add_review(connection, inspection, judgement, caller)
        return _found(added, inspection)

    return await records.read(write)


def _found(thing: Found | None, inspection: UUID) -> Found:
    if thing is None:
        raise ProblemError(UNKNOWN_INSPECTION, f"there is no inspection {inspection}, or its record was deleted by age")
    return thing


async def _picture(inspection: UUID, records: Records, what: Literal["image", "heatmap"]) -> Response:
    def read() -> tuple[bytes, str]:
        with records.database.begin() as connection:
            record = _found(queries.find(connection, inspection), inspection)
        find = records.pictures.image if what == "image" else records.pictures.heatmap
        picture: Picture | None = find(inspection, record.time)
        if picture is not None:
            try:
                return picture.path.read_bytes(), picture.media_type
            except FileNotFoundError:  # deleted by age in this moment
                pass
        raise ProblemError(
            PICTURE_NOT_KEPT,
            f"the {what} of inspection {inspection} is not kept; PLUMBLINE_KEEP_IMAGES says which are, and for how "
            "long; one just inspected may not be written yet",
        )

    content, media_type = await records.read(read)
    return Response(content, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})


def _csv_rows(records: Records, filters: queries.Filters, before: int) -> tuple[str, int | None]:
    with records.database.begin() as connection:
        found, following = queries.page(connection, filters, before, _CSV_PAGE)
    text = io.StringIO()
    writer = csv.writer(text)
    for entry in found:
        facts = [getattr(entry, name) for name in _CSV_FACTS]
        given = entry.review
        judged = [None] * 4 if given is None else [given.verdict, given.caller, given.time, given.note]
        writer.writerow([_cell(value) for value in (*facts, entry.times.get("total"), *judged)])
    return text.getvalue(), following


async def _csv(records: Records, filters: queries.Filters, first: tuple[str, int | None]) -> AsyncIterator[str]:
    head = [*_CSV_FACTS, "total_ms", "reviewed_verdict", "reviewed_by", "reviewed_at", "reviewed_note"]
    yield ",".join(head) + "\r\n"
    text, following = first
    yield text
    while following is not None:
        text, following = await records.read(partial(_csv_rows, records, filters, following))
        yield text


def _cell(value: Any) -> Any:
    """A value as a cell that no spreadsheet takes for a formula."""
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return value.isoformat() if hasattr(value, "isoformat") else value
