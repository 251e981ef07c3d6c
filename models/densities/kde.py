"""Kernel density on a FAISS index: the one-class classifier of the paper (Sohn et al., section 3.2, eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.densities.bank import Bank, BankDensity
from models.densities.kernel import LogKernelSum, StreamedGamma
from models.densities.stream import EmbeddingStream, HeldEmbeddings

Computed = Literal["exact", "neighbours"]
"""The ways in which a sum is computed; an artifact names one by its place here, so a new one goes to the end."""


class KernelDensityConfiguration(BaseModel):
    """Settings of a kernel density.

    Attributes:
        mode: ``exact`` sums over the whole bank; ``neighbours`` over the nearest embeddings only, another score.
        neighbours: how many of them.
        gamma: the kernel's inverse width; None takes the paper's from the data that ``fit`` sees.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["kernel_density"] = "kernel_density"
    mode: Computed = "exact"
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
        mode: how the sum is computed; what ``fit`` made of the configuration's.
    """

    configuration: KernelDensityConfiguration

    def __init__(
        self, configuration: KernelDensityConfiguration | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(configuration or KernelDensityConfiguration(), device)
        self.gamma = math.nan
        self.mode: Computed = "exact"

    def fit_stream(self, stream: EmbeddingStream) -> Self:
        """As ``fit``, of embeddings that need not be in memory.

        Raises:
            ValueError: as ``fit``.
        """
        self.check_samples(stream.count)
        learned = self._learn(stream)
        self._adopt({"samples": torch.tensor(stream.count), "dimension": torch.tensor(stream.dimension), **learned})
        return self

    def scores(self, queries: Tensor) -> Tensor:
        """Log density up to the kernel's constant: (n, D) -> (n,)."""
        # A mean of kernels is at most 1; rounding can put its logarithm just above 0.
        return torch.clamp_max((self._log_sum(queries) - self._log_samples) / self.gamma, 0)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "mode": self.mode}

    def _fit(self, X: NDArray[np.float32]) -> dict[str, Tensor]:
        return self._learn(HeldEmbeddings(torch.from_numpy(X)))

    def _learn(self, stream: EmbeddingStream) -> dict[str, Tensor]:
        gamma = StreamedGamma()
        self.bank = Bank.of(map(gamma.seeing, stream), stream.count, stream.dimension, self.device)
        mode = get_args(Computed).index(self.configuration.mode)
        return {
            "gamma": torch.tensor(self.configuration.gamma or gamma.value(), dtype=torch.float64),
            "mode": torch.tensor(mode),
        }

    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        self.gamma = float(state["gamma"])
        self._log_samples = math.log(int(state["samples"]))
        # Artifacts of before 1.1 do not name the mode: it was the configuration's.
        self.mode = get_args(Computed)[int(state["mode"])] if "mode" in state else self.configuration.mode
        self._log_sum = self._summing()

    def _summing(self) -> Callable[[Tensor], Tensor]:
        """What gives log( sum_y exp(-gamma ||x - y||^2) ) of queries (n, D): (n,)."""
        match self.mode:
            case "exact":
                return LogKernelSum(self.bank.vectors, self.gamma)
            case "neighbours":
                return self._nearest_log_sum

    def _nearest_log_sum(self, queries: Tensor) -> Tensor:
        count = min(self.configuration.neighbours, len(self.bank))  # no more neighbours than there are
        return (-self.gamma * self.bank.squared_distances(queries, count)).logsumexp(dim=1)
