"""No pretext task: the encoder as it begins, the floor that every task must beat."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class NoneConfiguration(BaseModel):
    """Stage 1 runs no step: random weights that the seed decides, or weights learned elsewhere where there are such.

    No image touches the encoder. Batch norm keeps the statistics that it begins with: mean 0 and variance 1 for random
    weights, which makes it the identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["none"] = "none"
