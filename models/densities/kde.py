"""Kernel density on a FAISS index: the one-class classifier of the paper (Sohn et al., section 3.2, eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.densities.base import Density, paper_gamma

BANK_FILE = "bank.faiss"
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


class KernelDensity(Density):
    """Gaussian kernel density: s(x) = (1 / gamma) log( (1 / N) sum_y exp(-gamma ||x - y||^2) ).

    gamma = 10 / (D Var(X)), D the dimension and Var over all entries (eq. 6 and section A.1). The paper's sum has no
    1 / N; here it is divided by N so that banks of different size compare. The *neighbours* mode keeps the 1 / N and
    sums over the k nearest embeddings only: a lower bound of the exact score, and with this wide kernel a different
    ranking. Computed in float32 and in log space; exact to 1e-5 for embeddings of unit norm. Scores are in units of
    squared distance and never above 0.

    Args:
        configuration: mode, number of neighbours and gamma.
        device: where the sum is computed. FAISS on a GPU is not safe to call from two threads, even to read.

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
            log_sum = torch.cat([self._log_sum(part) for part in torch.split(queries, QUERY_TILE)])
        else:
            log_sum = self._neighbours(queries)
        # A mean of kernels is at most 1; rounding can put its logarithm just above 0.
        return torch.clamp_max((log_sum - math.log(int(self._index.ntotal))) / self.gamma, 0)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "gamma": self.gamma}

    def save(self, folder: Path) -> None:
        super().save(folder)
        faiss.write_index(self._index, str(folder / BANK_FILE))

    def state(self) -> Mapping[str, Tensor]:
        return {"gamma": torch.tensor(self.gamma, dtype=torch.float64)}

    def _restore(self, state: Mapping[str, Tensor], folder: Path) -> None:
        self._adopt(faiss.read_index(str(folder / BANK_FILE)), float(state["gamma"]))

    def _fit(self, X: NDArray[np.float32]) -> None:
        """Keep ``X`` as the bank."""
        gamma = paper_gamma(X) if self.configuration.gamma is None else self.configuration.gamma
        index = faiss.IndexFlatL2(X.shape[1])
        index.add(X)
        self._adopt(index, gamma)

    def _adopt(self, index: Any, gamma: float) -> None:
        self._index = index
        self.gamma = gamma
        # A view of the index's own memory: the bank is held once.
        bank = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
        self._bank = torch.from_numpy(bank).to(self.device)
        self._bank_energy = gamma * self._bank.square().sum(dim=1)
        self._search_index = index
        if self.configuration.mode == "neighbours" and self.device.type == "cuda" and faiss.get_num_gpus() > 0:
            self._search_index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), self.device.index or 0, index)

    def _log_sum(self, queries: Tensor) -> Tensor:
        """Log of the kernel sum over the whole bank, streamed in tiles: (n,)."""
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
        count = min(self.configuration.neighbours, int(self._index.ntotal))
        distances, _ = self._search_index.search(queries.cpu().numpy(), count)
        log_sum = torch.from_numpy(-self.gamma * np.maximum(distances, 0)).logsumexp(dim=1)
        return log_sum.to(self.device)
