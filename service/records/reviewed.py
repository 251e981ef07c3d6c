"""Inspections that a person has judged: what a detector is measured on, and what its bank may be extended by."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection, select

from service.records.pictures import kept_image
from service.records.tables import inspections, reviews, with_latest_review


@dataclass(frozen=True)
class Reviewed:
    """An inspection and what a person last said of it.

    Attributes:
        review: good or defective; None where nobody has judged it.
        image: its file, where that is kept.
    """

    id: UUID
    category: str
    image_sha256: str
    review: str | None
    image: Path | None


def reviewed(
    connection: Connection, pictures: Path, *, category: str | None = None, ids: Collection[UUID] | None = None
) -> list[Reviewed]:
    """Inspections that clients were answered, the earliest first.

    Args:
        pictures: the folder that images are kept in.
        category: all of it that a person has judged; or
        ids: these, judged or not, of any category; those that are not recorded are left out.
    """
    columns = inspections.c
    wanted = columns.id.in_(ids) if ids is not None else (columns.category == category) & reviews.c.verdict.is_not(None)
    query = (
        select(columns.id, columns.time, columns.category, columns.image_sha256, reviews.c.verdict)
        .select_from(with_latest_review())
        .where(wanted, columns.shadow_of.is_(None))
        .order_by(columns.sequence)
    )
    found = []
    for row in connection.execute(query):
        picture = kept_image(pictures, row.id, row.time)
        found.append(
            Reviewed(row.id, row.category, row.image_sha256, row.verdict, None if picture is None else picture.path)
        )
    return found
