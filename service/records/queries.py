"""What is asked of the records: one, a page of them, and the reviews. Each works in a transaction that it is given."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import ColumnElement, Connection, Row, func, insert, select
from sqlalchemy.exc import IntegrityError

from models.prediction import Verdict
from service.records.record import Judgement, ListedInspection, Record, Review
from service.records.tables import inspections, reviews, with_latest_review

LARGEST_SEQUENCE = 2**63 - 1

_SHORT = 100_000  # inspections of a span of time that are found by it; in a longer one, the latest come soon


def _no_number(value: object) -> object:
    """Pydantic takes a number for seconds since 1970, of which nobody who sends one can be sure."""
    if isinstance(value, str) and value[4:5] != "-":
        raise ValueError("is no date and time as 2026-11-26T15:00:00Z")
    return value


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is outside the years 1 to 9999 in UTC") from error


_Text = Annotated[str, Field(max_length=128, pattern=r"^[^\x00]*$")]
_Time = Annotated[AwareDatetime, BeforeValidator(_no_number), AfterValidator(_in_utc)]


class Filters(BaseModel):
    """Which inspections; all that is given must hold."""

    model_config = ConfigDict(extra="forbid")

    category: _Text | None = None
    version: int | None = Field(default=None, ge=1, le=2**31 - 1)
    verdict: Verdict | None = None
    part: _Text | None = None
    lot: _Text | None = None
    since: _Time | None = Field(default=None, description="scored at this time or later; with its zone")
    until: _Time | None = Field(default=None, description="scored before this time; with its zone")
    reviewed: bool | None = Field(default=None, description="whether a person has judged it")
    min_score: float | None = Field(default=None, allow_inf_nan=False, description="least image score")
    shadow: bool = Field(default=False, description="those that a shadow version scored, which no client was answered")

    def conditions(self, connection: Connection) -> list[ColumnElement[bool]]:
        """What holds for the inspections that are meant, so that few others have to be looked at for them."""
        columns = inspections.c
        other = inspections.alias()
        reviewed = columns.sequence.in_(select(other.c.sequence).join(reviews, reviews.c.inspection == other.c.id))
        tests: dict[str, Callable[[Any], ColumnElement[bool]]] = {
            "since": lambda value: columns.time >= value,
            "until": lambda value: columns.time < value,
            "reviewed": lambda value: reviewed if value else ~reviewed,
            "min_score": lambda value: columns.image_score >= value,
            "shadow": lambda value: columns.shadow_of.is_not(None) if value else columns.shadow_of.is_(None),
        }
        given = {name: value for name in Filters.model_fields if (value := getattr(self, name)) is not None}
        found = [tests[name](value) if name in tests else columns[name] == value for name, value in given.items()]
        # Records come in the order of their numbers, which no index has together with the time.
        span = [tests[name](given[name]) for name in ("since", "until") if name in given]
        if span and _count(connection, span, _SHORT + 1) <= _SHORT:
            within = select(columns.sequence).where(*span).correlate(None)
            found.append(columns.sequence.in_(within))
        return found


def page(
    connection: Connection, filters: Filters, before: int, limit: int
) -> tuple[list[ListedInspection], int | None]:
    """Inspections, the latest first.

    Args:
        before: only those whose number is smaller.

    Returns:
        At most ``limit`` of them, and the ``before`` of what follows; None where nothing does.
    """
    columns = [column for column in inspections.c if column.name != "regions"]
    query = (
        select(*columns, *(column.label(f"judged_{column.name}") for column in reviews.c))
        .select_from(with_latest_review())
        .where(inspections.c.sequence < before, *filters.conditions(connection))
        .order_by(inspections.c.sequence.desc())
        .limit(limit + 1)
    )
    rows = connection.execute(query).all()
    following = rows[limit - 1].sequence if len(rows) > limit else None
    return [_listed(row) for row in rows[:limit]], following


def find(connection: Connection, inspection: UUID) -> Record | None:
    """One inspection."""
    row = connection.execute(select(inspections).where(inspections.c.id == inspection)).one_or_none()
    return None if row is None else Record.model_validate(_values(row))


def reviews_of(connection: Connection, inspection: UUID) -> tuple[Review, ...]:
    """The reviews of an inspection, the latest first."""
    query = select(reviews).where(reviews.c.inspection == inspection).order_by(reviews.c.sequence.desc())
    return tuple(_review(_values(row)) for row in connection.execute(query))


def add_review(connection: Connection, inspection: UUID, judgement: Judgement, caller: str) -> Review | None:
    """Add a review to those of an inspection; None where there is no such inspection."""
    review = Review(**judgement.model_dump(), time=datetime.now(UTC), caller=caller)
    try:
        # Nothing is read before it is written: SQLite could not wait for another writer then.
        connection.execute(insert(reviews).values(inspection=inspection, **review.model_dump()))
    except IntegrityError:
        return None
    return review


def _count(connection: Connection, conditions: list[ColumnElement[bool]], most: int) -> int:
    """How many inspections there are, up to so many."""
    some = select(inspections.c.sequence).where(*conditions).limit(most).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()


def _listed(row: Row[Any]) -> ListedInspection:
    values = _values(row)
    own = {name.removeprefix("judged_"): values[name] for name in values if name.startswith("judged_")}
    review = None if own["sequence"] is None else _review(own)
    return ListedInspection.model_validate(values | {"review": review})


def _review(values: dict[str, Any]) -> Review:
    return Review(**{name: values[name] for name in Review.model_fields})


def _values(row: Row[Any]) -> dict[str, Any]:
    return dict(row._mapping)
