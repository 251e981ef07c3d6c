"""The Gaussian kernel exp(-gamma ||x - y||^2): the paper's gamma, and its sum over many embeddings."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GAMMA_NUMERATOR = 10.0  # the paper's bandwidth: ten times scikit-learn's "scale"
NO_VARIANCE = 2.0**-48  # of the mean's square: less is only how float32 rounds
QUERY_TILE, CENTRE_TILE = 512, 4096  # the tile of the kernel matrix held at once: 8 MB in float32


def paper_gamma(X: NDArray[np.float32]) -> float:
    """The paper's inverse kernel width, 10 / (D Var(X)), Var over all entries of (N, D) (eq. 6, section A.1).

    Raises:
        ValueError: if X is constant; gamma would be infinite.
    """
    return _gamma(X.shape[1], float(X.var(dtype=np.float64)))


def _gamma(dimension: int, variance: float) -> float:
    if variance == 0:
        raise ValueError("the embeddings are all the same: gamma = 10 / (D Var) does not exist; set gamma")
    return float(GAMMA_NUMERATOR / (dimension * variance))


class StreamedGamma:
    """``paper_gamma`` of embeddings that come in parts; the parts' moments are merged (Chan, Golub, LeVeque, 1979)."""

    def __init__(self) -> None:
        self._entries, self._mean, self._squares = 0, 0.0, 0.0  # squares: of the distances to the mean
        self._dimension = 0

    def seeing(self, part: Tensor) -> Tensor:
        """Take embeddings (n, D) into account, and give them back."""
        entries, whole = part.numel(), self._entries + part.numel()
        variance, mean = torch.var_mean(part.double(), correction=0)
        apart = float(mean) - self._mean
        self._squares += float(variance) * entries + apart**2 * self._entries * entries / whole
        self._mean += apart * entries / whole
        self._entries, self._dimension = whole, part.shape[1]
        return part

    def value(self) -> float:
        """gamma.

        Raises:
            ValueError: if all that was seen is constant.
        """
        variance = self._squares / self._entries
        return _gamma(self._dimension, variance if variance > NO_VARIANCE * self._mean**2 else 0)


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
