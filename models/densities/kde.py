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
from models.densities.kernel import LogKernelSum, Precision, StreamedGamma
from models.densities.sampled import SampledLogKernelSum, sample_sizes, stratified_rows
from models.densities.stream import EmbeddingStream, HeldEmbeddings

Computed = Literal["exact", "neighbours", "sampled"]
"""The ways in which a sum is computed; an artifact names one by its place here, so a new one goes to the end."""


SAMPLE = "sample."  # before the place of each in the state


class KernelDensityConfiguration(BaseModel):
    """Settings of a kernel density.

    Attributes:
        mode: ``exact`` sums over the whole bank; ``neighbours`` over the nearest embeddings only, another score;
            ``sampled`` estimates the exact score from samples of the bank, with a known error.
        neighbours: how many of them.
        gamma: the kernel's inverse width; None takes the paper's from the data that ``fit`` sees.
        precision: of the embeddings in the products of a sum over the whole bank; half of float32's bits take less time
            where the processor multiplies them. A sample is always summed in float32.
        samples: embeddings in the smallest sample.
        tolerance: how far a score from a sample may be off at 95 % confidence, in units of the score; beyond, the query
            gets a sample four times as large, at last the whole bank.
        seed: of the samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["kernel_density"] = "kernel_density"
    mode: Computed = "exact"
    neighbours: int = Field(default=32, ge=1)
    gamma: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    precision: Precision = "float32"
    samples: int = Field(default=32768, ge=64)
    tolerance: float = Field(default=0.005, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)


class KernelDensity(BankDensity):
    """Gaussian kernel density: s(x) = (1 / gamma) log( (1 / N) sum_y exp(-gamma ||x - y||^2) ).

    gamma = 10 / (D Var(X)), D the dimension and Var over all entries (eq. 6 and section A.1). The paper's sum has no
    1 / N; here it is divided by N so that banks of different size compare. The *neighbours* mode keeps the 1 / N and
    sums over the k nearest embeddings only: a lower bound of the exact score, and with this wide kernel a different
    ranking. The *sampled* mode is an unbiased estimate of the sum; ``scores_with_error`` tells how far each score may
    be off. Computed in log space, and in float32 unless the precision is set: then exact to 1e-5 for embeddings of unit
    norm. Scores are in units of squared distance and never above 0.

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
        return self._scores(self._log_sum(queries))

    def scores_with_error(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) of queries (n, D), and how far each may be off at 95 % confidence for having been sampled, (n,).

        The second is 0 where nothing was sampled. It tells nothing of rounding, nor of another score than the exact.
        """
        if not isinstance(self._log_sum, SampledLogKernelSum):
            scores = self.scores(queries)
            return scores, torch.zeros_like(scores)
        log_sums, half_widths = self._log_sum.estimates(queries)
        return self._scores(log_sums), half_widths / self.gamma

    def in_float32(self) -> Self:
        """The same density, its products in float32."""
        if self.configuration.precision == "float32":
            return self
        exact = type(self)(self.configuration.model_copy(update={"precision": "float32"}), self.device)
        exact.bank = self.bank
        exact._adopt(self.state)
        return exact

    def facts(self) -> dict[str, Any]:
        sampled = {"sampled": [rows.numel() for rows in _samples(self.state)]} if self.mode == "sampled" else {}
        return {**super().facts(), "mode": self.mode, **sampled}

    def _scores(self, log_sums: Tensor) -> Tensor:
        # A mean of kernels is at most 1; rounding can put its logarithm just above 0.
        return torch.clamp_max((log_sums - self._log_samples) / self.gamma, 0)

    def _fit(self, X: NDArray[np.float32]) -> dict[str, Tensor]:
        return self._learn(HeldEmbeddings(torch.from_numpy(X)))

    def _learn(self, stream: EmbeddingStream) -> dict[str, Tensor]:
        gamma = StreamedGamma()
        self.bank = Bank.of(map(gamma.seeing, stream), stream.count, stream.dimension, self.device)
        mode = get_args(Computed).index(self.configuration.mode)
        return {
            "gamma": torch.tensor(self.configuration.gamma or gamma.value(), dtype=torch.float64),
            "mode": torch.tensor(mode),
            **self._of_bank(),
        }

    def _of_bank(self) -> dict[str, Tensor]:
        if self.configuration.mode != "sampled":
            return {}
        sizes = sample_sizes(self.configuration.samples, len(self.bank))
        samples = stratified_rows(self.bank.vectors, sizes, self.configuration.seed)
        return {f"{SAMPLE}{place}": rows for place, rows in enumerate(samples)}

    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        self.gamma = float(state["gamma"])
        self._log_samples = math.log(int(state["samples"]))
        # Artifacts of before 1.1 do not name the mode: it was the configuration's.
        self.mode = get_args(Computed)[int(state["mode"])] if "mode" in state else self.configuration.mode
        self._log_sum = self._summing()

    def _summing(self) -> Callable[[Tensor], Tensor]:
        """What gives log( sum_y exp(-gamma ||x - y||^2) ) of queries (n, D): (n,)."""
        vectors, precision = self.bank.vectors, self.configuration.precision
        match self.mode:
            case "exact":
                return LogKernelSum(vectors, self.gamma, precision=precision)
            case "neighbours":
                return self._nearest_log_sum
            case "sampled":
                whole = LogKernelSum(vectors, self.gamma, precision=precision)
                tolerance = self.configuration.tolerance * self.gamma
                return SampledLogKernelSum(vectors, self.gamma, _samples(self.state), tolerance, whole)

    def _nearest_log_sum(self, queries: Tensor) -> Tensor:
        count = min(self.configuration.neighbours, len(self.bank))  # no more neighbours than there are
        return (-self.gamma * self.bank.squared_distances(queries, count)).logsumexp(dim=1)


def _samples(state: Mapping[str, Tensor]) -> list[Tensor]:
    """The rows of each sample, the smallest first."""
    names = sorted((name for name in state if name.startswith(SAMPLE)), key=lambda name: int(name[len(SAMPLE) :]))
    return [state[name] for name in names]
