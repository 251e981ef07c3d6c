"""Distance to the nearest embeddings of the bank (Reiss, Hoshen: Mean-Shifted Contrastive Loss, 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.densities.bank import BankDensity


class NearestNeighboursConfiguration(BaseModel):
    """``neighbours``: how many distances are averaged; 1 or 2 are usual."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["nearest_neighbours"] = "nearest_neighbours"
    neighbours: int = Field(default=1, ge=1)


class NearestNeighbours(BankDensity):
    """Mean distance to the k nearest embeddings of the bank: s(x) = -(1 / k) sum_i ||x - y_i||^2.

    The distance is squared, as in Reiss and Hoshen's score: of unit vectors it is twice 1 - x.y. The search is exact.
    Scores are never above 0.

    Args:
        configuration: the number of neighbours.
        device: where distances are computed.
    """

    configuration: NearestNeighboursConfiguration

    def __init__(
        self, configuration: NearestNeighboursConfiguration | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(configuration or NearestNeighboursConfiguration(), device)
        self.fewest_samples = self.configuration.neighbours

    def scores(self, queries: Tensor) -> Tensor:
        """Minus the mean squared distance to the nearest: (n, D) -> (n,)."""
        return -self.bank.squared_distances(queries, self.configuration.neighbours).mean(dim=1)

    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        pass  # the bank is all there is
