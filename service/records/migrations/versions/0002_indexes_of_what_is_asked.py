"""Indexes for what is asked of many records: a verdict, and what shadows scored."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OF_SHADOWS = sa.text("shadow_of IS NOT NULL")


def upgrade() -> None:
    op.create_index("inspections_verdict", "inspections", ["verdict", "sequence"])
    op.create_index("inspections_category_verdict", "inspections", ["category", "verdict", "sequence"])
    for name, columns in (
        ("inspections_shadow", ["sequence"]),
        ("inspections_category_shadow", ["category", "sequence"]),
    ):
        op.create_index(name, "inspections", columns, sqlite_where=_OF_SHADOWS, postgresql_where=_OF_SHADOWS)
