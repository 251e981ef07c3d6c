"""Inspections and their reviews."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(JSONB, "postgresql")


def upgrade() -> None:
    op.create_table(
        "inspections",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Uuid, nullable=False, unique=True),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("category", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("operation", sa.Integer, nullable=False),
        sa.Column("shadow_of", sa.Uuid),
        sa.Column("image_sha256", sa.Text, nullable=False),
        sa.Column("image_width", sa.Integer, nullable=False),
        sa.Column("image_height", sa.Integer, nullable=False),
        sa.Column("image_score", sa.Double, nullable=False),
        sa.Column("p_value", sa.Double, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("image_threshold", sa.Double, nullable=False),
        sa.Column("pixel_threshold", sa.Double, nullable=False),
        sa.Column("review_low", sa.Double),
        sa.Column("review_high", sa.Double),
        sa.Column("regions", _JSON, nullable=False),
        sa.Column("part", sa.Text),
        sa.Column("lot", sa.Text),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("protocol", sa.Text, nullable=False),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("times", _JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("inspections_time", "inspections", ["time"])
    op.create_index("inspections_category", "inspections", ["category", "sequence"])
    op.create_index("inspections_part", "inspections", ["part"])
    op.create_index("inspections_lot", "inspections", ["lot"])
    op.create_table(
        "reviews",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("inspection", sa.Uuid, sa.ForeignKey("inspections.id", ondelete="CASCADE"), nullable=False),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("reviews_inspection", "reviews", ["inspection", "sequence"])
