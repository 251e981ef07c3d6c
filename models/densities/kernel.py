"""The Gaussian kernel exp(-gamma ||x - y||^2): the paper's gamma, and its sum over many embeddings."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GAMMA_NUMERATOR = 10.0  # the paper's bandwidth: ten times scikit-learn's "scale"
QUERY_TILE, CENTRE_TILE = 512, 4096  # the tile of the kernel matrix held at once: 8 MB in float32


def paper_gamma(X: NDArray[np.float32]) -> float:
    """The paper's inverse kernel width, 10 / (D Var(X)), Var over all entries of (N, D) (eq. 6, section A.1).

    Raises:
        ValueError: if X is constant; gamma would be infinite.
    """
    variance = float(X.var(dtype=np.float64))
    if variance == 0:
        raise ValueError("the embeddings are all the same: gamma = 10 / (D Var) does not exist; set gamma")
    return float(GAMMA_NUMERATOR / (X.shape[1] * variance))


class LogKernelSum:
    """log( sum_j w_j exp(-gamma ||x - y_j||^2) ), streamed in tiles; in log space, where no query is too far to tell.

    Args:
        centres: the y, (N, D) float32; kept, not copied.
        gamma: inverse width of the kernel.
        log_weights: logarithms of the w, (N,) on the same device; None weighs each with 1.
    """

    def __init__(self, centres: Tensor, gamma: float, log_weights: Tensor | None = None) -> None:
        self._centres = centres
        self._gamma = gamma
        self._offsets = -gamma * centres.square().sum(dim=1)
        if log_weights is not None:
            self._offsets += log_weights.float()

    def __call__(self, queries: Tensor) -> Tensor:
        """(n, D) float32 -> (n,)."""
        return torch.cat([self._log_sum(part) for part in torch.split(queries, QUERY_TILE)])

    def _log_sum(self, queries: Tensor) -> Tensor:
        scaled = queries * (2 * self._gamma)
        total = queries.new_full((len(queries),), -math.inf)
        for centres, offsets in zip(
            torch.split(self._centres, CENTRE_TILE), torch.split(self._offsets, CENTRE_TILE), strict=True
        ):
            exponents = torch.addmm(offsets, scaled, centres.T)  # (n, tile): gamma (2 x.y - y.y) + log w
            total = torch.logaddexp(total, exponents.logsumexp(dim=1))
        return total - self._gamma * queries.square().sum(dim=1)
