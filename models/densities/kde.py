"""Kernel density on a FAISS index: the one-class classifier of the paper (Sohn et al., section 3.2, eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.densities.bank import BankDensity
from models.densities.kernel import LogKernelSum, paper_gamma


class KernelDensityConfiguration(BaseModel):
    """Settings of a kernel density.

    Attributes:
        mode: ``exact`` sums over the whole bank; ``neighbours`` over the nearest embeddings only, another score.
        neighbours: how many of them.
        gamma: the kernel's inverse width; None takes the paper's from the data that ``fit`` sees.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["kernel_density"] = "kernel_density"
    mode: Literal["exact", "neighbours"] = "exact"
    neighbours: int = Field(default=32, ge=1)
    gamma: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class KernelDensity(BankDensity):
    """Gaussian kernel density: s(x) = (1 / gamma) log( (1 / N) sum_y exp(-gamma ||x - y||^2) ).

    gamma = 10 / (D Var(X)), D the dimension and Var over all entries (eq. 6 and section A.1). The paper's sum has no
    1 / N; here it is divided by N so that banks of different size compare. The *neighbours* mode keeps the 1 / N and
    sums over the k nearest embeddings only: a lower bound of the exact score, and with this wide kernel a different
    ranking. Computed in float32 and in log space; exact to 1e-5 for embeddings of unit norm. Scores are in units of
    squared distance and never above 0.

    Args:
        configuration: mode, number of neighbours and gamma.
        device: where the sum is computed.

    Attributes:
        gamma: set by ``fit``.
    """

    configuration: KernelDensityConfiguration

    def __init__(
        self, configuration: KernelDensityConfiguration | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(configuration or KernelDensityConfiguration(), device)
        self.gamma = math.nan

    def scores(self, queries: Tensor) -> Tensor:
        """Log density up to the kernel's constant: (n, D) -> (n,)."""
        if self.configuration.mode == "exact":
            log_sum = self._log_sum(queries)
        else:  # no more neighbours than there are
            count = min(self.configuration.neighbours, len(self.bank))
            log_sum = (-self.gamma * self.bank.squared_distances(queries, count)).logsumexp(dim=1)
        # A mean of kernels is at most 1; rounding can put its logarithm just above 0.
        return torch.clamp_max((log_sum - math.log(len(self.bank))) / self.gamma, 0)

    def _fit(self, X: NDArray[np.float32]) -> dict[str, Tensor]:
        gamma = paper_gamma(X) if self.configuration.gamma is None else self.configuration.gamma
        return {**super()._fit(X), "gamma": torch.tensor(gamma, dtype=torch.float64)}

    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        self.gamma = float(state["gamma"])
        self._log_sum = LogKernelSum(self.bank.vectors, self.gamma)
