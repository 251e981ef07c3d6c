"""The Gaussian kernel exp(-gamma ||x - y||^2): the paper's gamma, and its sum over many embeddings."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.densities.base import NOT_FINITE

Precision = Literal["float32", "bfloat16", "float16"]

GAMMA_NUMERATOR = 10.0  # the paper's bandwidth: ten times scikit-learn's "scale"
NO_VARIANCE = 2.0**-48  # of the mean's square: less is only how float32 rounds
# The tile of the kernel matrix held at once: 8 MB in float32. Smaller ones, which an L2 cache holds, take as long, and
# threads wait for each other more often: on a busy machine that is what takes long.
QUERY_TILE, CENTRE_TILE = 1024, 2048
CUDA_QUERY_TILE, CUDA_CENTRE_TILE = 4096, 16384  # 256 MB: fewer, larger products
FUSED_TILE = 2**16  # centres that are rounded at once
# Of 2 gamma x.y, and of gamma y.y - log w: tens of thousands of exp(70) fit float32, and exp(-70) does.
LARGEST_EXPONENT = 70.0
SMALLEST_SUM = 1e-24  # beside it, what underflowed of a million terms is below the rounding of float32


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

    def value(self, chosen: float | None = None) -> float:
        """gamma: the one that was chosen for these embeddings, or the paper's.

        Raises:
            ValueError: if what was seen is not finite, or constant where the paper's is asked for.
        """
        variance = self._squares / self._entries
        if not math.isfinite(variance):
            raise ValueError(NOT_FINITE)
        if chosen is not None:
            return chosen
        return _gamma(self._dimension, variance if variance > NO_VARIANCE * self._mean**2 else 0)


class LogKernelSum:
    """log( sum_j w_j exp(-gamma ||x - y_j||^2) ), streamed in tiles; in log space, where no query is too far to tell.

    In *bfloat16* and *float16* vectors are rounded once the centres' mean is taken off: the sum is then that of
    slightly moved points, added up in float32; a CPU rounds each inner product too (docs/results/kde.md has the error).
    Always in float32 are sums whose gradient is asked for, and sums of terms so large or small that the largest must be
    taken off before they are added up.

    Args:
        centres: the y, (N, D) float32; kept, not copied.
        gamma: inverse width of the kernel.
        log_weights: logarithms of the w, (N,) on the same device; None weighs each with 1.
        precision: of the vectors whose inner products are taken.
        fused: by one kernel of Triton instead of torch's operations; on CUDA, and not in float32.
    """

    def __init__(
        self,
        centres: Tensor,
        gamma: float,
        log_weights: Tensor | None = None,
        precision: Precision = "float32",
        fused: bool = False,
    ) -> None:
        if fused and precision == "float32":
            raise ValueError("the fused sum is of bfloat16 or float16 vectors; set precision")
        self._centres, self._gamma, self._fused = centres, gamma, fused
        self._log_weights = None if log_weights is None else log_weights.float()
        self._dtype: torch.dtype = getattr(torch, precision)
        self._origin = None if self._dtype == torch.float32 else centres.mean(dim=0)
        squares = torch.cat([self._rounded(part).float().square().sum(dim=1) for part in torch.split(centres, 2**14)])
        self._radius = float(squares.max().sqrt())
        self._largest = 0.0 if log_weights is None else float(log_weights.max())
        logarithms = -gamma * squares
        if self._log_weights is not None:
            logarithms += self._log_weights - self._largest
        self._factors = logarithms.exp()  # (N,): what is left of a term beside exp(2 gamma x.y)
        self._factors_fit = float(logarithms.min()) >= -LARGEST_EXPONENT

    def __call__(self, queries: Tensor) -> Tensor:
        """(n, D) float32 -> (n,)."""
        needs_gradient = torch.is_grad_enabled() and queries.requires_grad
        if needs_gradient or _traced(queries) or not self._factors_fit:
            return self._logarithms(queries)
        scaled = self._rounded(queries, 2 * self._gamma)
        squares = scaled.float().square().sum(dim=1)
        sums = self._fused_sums(scaled) if self._fused else self._sums(scaled)
        result = sums.log().float() + (self._largest - squares / (4 * self._gamma))
        plain = (squares.sqrt() * self._radius <= LARGEST_EXPONENT) & (sums >= SMALLEST_SUM)
        if not plain.all():
            result[~plain] = self._logarithms(queries[~plain])
        return result

    def _rounded(self, vectors: Tensor, factor: float = 1) -> Tensor:
        """(n, D) as they enter the product."""
        if self._origin is not None:
            vectors = vectors - self._origin
        return (vectors if factor == 1 else vectors * factor).to(self._dtype)

    def _sums(self, scaled: Tensor) -> Tensor:
        """sum_j w_j exp(2 gamma x.y_j - gamma y_j.y_j), the largest w taken as 1, in float64: one pass over a tile."""
        query_tile, centre_tile = (
            min(pair) for pair in zip(tile_sizes(scaled), (len(scaled), len(self._centres)), strict=True)
        )
        sums = scaled.new_zeros(len(scaled), dtype=torch.float64)
        memory = scaled.new_empty(query_tile * centre_tile, dtype=torch.float32)
        tiles = zip(torch.split(self._centres, centre_tile), torch.split(self._factors, centre_tile), strict=True)
        for part, factors in tiles:
            centres = self._rounded(part).T
            for queries, total in zip(torch.split(scaled, query_tile), torch.split(sums, query_tile), strict=True):
                kernels = memory[: len(queries) * len(part)].view(len(queries), len(part))
                total += torch.mv(_product(queries, centres, kernels).exp_(), factors)
        return sums

    def _fused_sums(self, scaled: Tensor) -> Tensor:
        """As ``_sums``."""
        from models.densities.fused import fused_sums  # Triton is there with torch for CUDA only

        sums = scaled.new_zeros(len(scaled), dtype=torch.float64)
        tiles = zip(torch.split(self._centres, FUSED_TILE), torch.split(self._factors, FUSED_TILE), strict=True)
        for part, factors in tiles:
            sums += fused_sums(scaled.contiguous(), self._rounded(part).contiguous(), factors)
        return sums

    def _logarithms(self, queries: Tensor) -> Tensor:
        """What ``__call__`` returns, whatever the exponents, and differentiable: several passes over a tile."""
        query_tile, _ = tile_sizes(queries)
        return torch.cat([self._tile_logarithms(part) for part in torch.split(queries, query_tile)])

    def _tile_logarithms(self, queries: Tensor) -> Tensor:
        scaled = queries * (2 * self._gamma)
        total = queries.new_full((len(queries),), -math.inf)
        _, centre_tile = tile_sizes(queries)
        for start in range(0, len(self._centres), centre_tile):
            tile = slice(start, start + centre_tile)
            centres = self._centres[tile]
            offsets = -self._gamma * centres.square().sum(dim=1)
            if self._log_weights is not None:
                offsets += self._log_weights[tile]
            exponents = torch.addmm(offsets, scaled, centres.T)  # (n, tile): gamma (2 x.y - y.y) + log w
            total = torch.logaddexp(total, exponents.logsumexp(dim=1))
        return total - self._gamma * queries.square().sum(dim=1)


def _product(queries: Tensor, centres: Tensor, out: Tensor) -> Tensor:
    """queries @ centres in float32, in ``out``."""
    if queries.dtype == torch.float32:
        return torch.mm(queries, centres, out=out)
    if queries.is_cuda:
        return torch.mm(queries, centres, out_dtype=torch.float32, out=out)
    return out.copy_(torch.mm(queries, centres))  # torch's product on a CPU has the precision of its inputs


def tile_sizes(queries: Tensor) -> tuple[int, int]:
    """Queries and centres of the tile of the kernel matrix that is held at once."""
    return (CUDA_QUERY_TILE, CUDA_CENTRE_TILE) if queries.is_cuda else (QUERY_TILE, CENTRE_TILE)


def _traced(queries: Tensor) -> bool:
    """Whether the operations are recorded, to run on other queries later: then they cannot depend on these."""
    return torch.compiler.is_compiling() or (queries.is_cuda and torch.cuda.is_current_stream_capturing())
