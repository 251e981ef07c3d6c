"""The tables of the records database, as the newest migration leaves them.

``sequence`` is the order in which records came, which a clock that jumps does not change.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    FromClause,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

# SQLite numbers rows by itself only where the type is INTEGER, which has 64 bits there.
Sequence = BigInteger().with_variant(Integer, "sqlite")
Json = JSON().with_variant(JSONB, "postgresql")


class UtcTime(TypeDecorator[datetime]):
    """A point in time, UTC; SQLite keeps it as text without the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()
_OF_SHADOWS = text("shadow_of IS NOT NULL")


def _column(name: str, kind: Any, *, nullable: bool = False) -> Column[Any]:
    return Column(name, kind, nullable=nullable)


inspections = Table(
    "inspections",
    metadata,
    Column("sequence", Sequence, primary_key=True, autoincrement=True),
    Column("id", Uuid, nullable=False, unique=True),
    _column("time", UtcTime),
    _column("category", Text),
    _column("version", Integer),
    _column("operation", Integer),
    _column("shadow_of", Uuid, nullable=True),
    _column("image_sha256", Text),
    _column("image_width", Integer),
    _column("image_height", Integer),
    _column("image_score", Double),
    _column("p_value", Double),
    _column("verdict", Text),
    _column("image_threshold", Double),
    _column("pixel_threshold", Double),
    _column("review_low", Double, nullable=True),
    _column("review_high", Double, nullable=True),
    _column("regions", Json),
    _column("part", Text, nullable=True),
    _column("lot", Text, nullable=True),
    _column("caller", Text),
    _column("protocol", Text),
    _column("output", Text),
    _column("times", Json),
    Index("inspections_time", "time"),
    Index("inspections_category", "category", "sequence"),
    Index("inspections_verdict", "verdict", "sequence"),
    Index("inspections_category_verdict", "category", "verdict", "sequence"),
    Index("inspections_shadow", "sequence", sqlite_where=_OF_SHADOWS, postgresql_where=_OF_SHADOWS),
    Index(
        "inspections_category_shadow", "category", "sequence", sqlite_where=_OF_SHADOWS, postgresql_where=_OF_SHADOWS
    ),
    Index("inspections_part", "part"),
    Index("inspections_lot", "lot"),
    sqlite_autoincrement=True,  # never gives a number again after the last row was deleted
)

reviews = Table(
    "reviews",
    metadata,
    Column("sequence", Sequence, primary_key=True, autoincrement=True),
    Column("inspection", Uuid, ForeignKey(inspections.c.id, ondelete="CASCADE"), nullable=False),
    _column("time", UtcTime),
    _column("caller", Text),
    _column("verdict", Text),
    _column("note", Text, nullable=True),
    Index("reviews_inspection", "inspection", "sequence"),
    sqlite_autoincrement=True,
)


def with_latest_review() -> FromClause:
    """Inspections, each beside the latest of its reviews, which counts, if there is one."""
    of_it = reviews.alias()
    last = select(func.max(of_it.c.sequence)).where(of_it.c.inspection == inspections.c.id).scalar_subquery()
    return inspections.outerjoin(reviews, reviews.c.sequence == last)
