"""Kernel density on a FAISS index: the one-class classifier of the paper (Sohn et al., section 3.2, eq. 6)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

BANK_FILE = "bank.faiss"
GAMMA_NUMERATOR = 10.0  # the paper's bandwidth: ten times scikit-learn's "scale"
NOT_FINITE = "embeddings must be finite; found NaN or infinity"
QUERY_TILE, BANK_TILE = 512, 4096  # the tile of the kernel matrix held at once: 8 MB in float32


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
    gamma: float | None = Field(default=None, gt=0)


class KernelDensity:
    """Gaussian kernel density: s(x) = (1 / gamma) log( (1 / N) sum_y exp(-gamma ||x - y||^2) ).

    gamma = 10 / (D Var(X)), D the dimension and Var over all entries (eq. 6 and section A.1). The paper's sum has no
    1 / N; here it is divided by N so that banks of different size compare. The *neighbours* mode keeps the 1 / N and
    sums over the k nearest embeddings only: a lower bound of the exact score, and with this wide kernel a different
    ranking. Computed in float32 and in log space; exact to 1e-5 for embeddings of unit norm.

    Args:
        configuration: mode, number of neighbours and gamma.
        device: where the sum is computed. FAISS on a GPU is not safe to call from two threads, even to read.

    Attributes:
        gamma: set by ``fit``.
    """

    def __init__(
        self, configuration: KernelDensityConfiguration | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.configuration = configuration or KernelDensityConfiguration()
        self.device = torch.device(device)
        self.gamma = math.nan

    def fit(self, X: NDArray[np.float32]) -> Self:
        """Keep ``X`` as the bank.

        Args:
            X: (N, D) finite embeddings.

        Raises:
            ValueError: if X is empty, not two-dimensional, not finite or constant (gamma would be infinite).
        """
        X = _checked(X)
        gamma = self.configuration.gamma
        if gamma is None:
            variance = float(X.var(dtype=np.float64))
            if variance == 0:
                raise ValueError("the embeddings are all the same: gamma = 10 / (D Var) does not exist; set gamma")
            gamma = GAMMA_NUMERATOR / (X.shape[1] * variance)
        index = faiss.IndexFlatL2(X.shape[1])
        index.add(X)
        return self._adopt(index, gamma)

    def score_samples(self, X: NDArray[np.float32] | Tensor) -> NDArray[np.float32]:
        """Log density up to the kernel's constant, in units of squared distance.

        Args:
            X: (n, D) embeddings, an array or a tensor on any device.

        Returns:
            (n,) float32; higher is more normal. Never above 0.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: on another dimension than the bank's, or values that are not finite.
        """
        if math.isnan(self.gamma):
            raise RuntimeError("this KernelDensity has no bank: call fit first")
        queries = X if isinstance(X, Tensor) else torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"expected embeddings (n, {self.dimension}), not {tuple(queries.shape)}")
        if not torch.isfinite(queries).all():  # a NaN score would compare as good with every threshold
            raise ValueError(NOT_FINITE)
        log_sum = self._exact(queries) if self.configuration.mode == "exact" else self._neighbours(queries)
        # A mean of kernels is at most 1; rounding can put its logarithm just above 0.
        return torch.clamp_max((log_sum - math.log(len(self))) / self.gamma, 0).cpu().numpy()

    def __len__(self) -> int:
        """Embeddings in the bank."""
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return int(self._index.d)

    def save(self, folder: Path) -> None:
        """Write the bank into ``folder``; gamma is the caller's to keep."""
        faiss.write_index(self._index, str(folder / BANK_FILE))

    @classmethod
    def load(
        cls, folder: Path, configuration: KernelDensityConfiguration, gamma: float, device: torch.device | str = "cpu"
    ) -> Self:
        """The density that ``save`` wrote."""
        return cls(configuration, device)._adopt(faiss.read_index(str(folder / BANK_FILE)), gamma)

    def _adopt(self, index: Any, gamma: float) -> Self:
        self._index = index
        self.gamma = gamma
        # A view of the index's own memory: the bank is held once.
        bank = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
        self._bank = torch.from_numpy(bank).to(self.device)
        self._bank_energy = gamma * self._bank.square().sum(dim=1)
        self._search_index = index
        if self.configuration.mode == "neighbours" and self.device.type == "cuda" and faiss.get_num_gpus() > 0:
            self._search_index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), self.device.index or 0, index)
        return self

    def _exact(self, queries: Tensor) -> Tensor:
        """Log of the kernel sum over the whole bank, streamed in tiles: (n,)."""
        queries = queries.to(self.device, torch.float32)
        return torch.cat([self._log_sum(part) for part in torch.split(queries, QUERY_TILE)])

    def _log_sum(self, queries: Tensor) -> Tensor:
        scaled = queries * (2 * self.gamma)
        total = queries.new_full((len(queries),), -math.inf)
        for bank, energy in zip(
            torch.split(self._bank, BANK_TILE), torch.split(self._bank_energy, BANK_TILE), strict=True
        ):
            exponents = torch.addmm(energy, scaled, bank.T, beta=-1)  # (n, tile): gamma (2 x.y - y.y)
            total = torch.logaddexp(total, exponents.logsumexp(dim=1))
        return total - self.gamma * queries.square().sum(dim=1)

    def _neighbours(self, queries: Tensor) -> Tensor:
        """Log of the kernel sum over the nearest embeddings of the bank: (n,)."""
        count = min(self.configuration.neighbours, len(self))
        distances, _ = self._search_index.search(queries.float().cpu().numpy(), count)
        return torch.from_numpy(-self.gamma * np.maximum(distances, 0)).logsumexp(dim=1)


def _checked(X: NDArray[np.float32]) -> NDArray[np.float32]:
    X = np.ascontiguousarray(X, dtype=np.float32)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"expected embeddings (n, D), not an array of shape {X.shape}")
    if not np.isfinite(X).all():
        raise ValueError(NOT_FINITE)
    return X
