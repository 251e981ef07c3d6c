"""Densities as torch modules of one straight line, which ``torch.export`` can follow into other engines.

A density's own ``scores`` splits queries into as many parts as there are, and searches by FAISS: neither can be traced.
Here the number of queries of an image is known, and the nearest embeddings are found by a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from models.densities.base import Density
from models.densities.compression import LOG_WEIGHTS
from models.densities.gaussian import GaussianDensity, GaussianMixture
from models.densities.kde import KernelDensity
from models.densities.kernel import LARGEST_EXPONENT
from models.densities.nearest_neighbours import NearestNeighbours
from models.densities.one_class_svm import OneClassSVM

QUERY_TILE, CENTRE_TILE = 1024, 4096  # of the matrix held at once: 16 MB an image in float32


class NotTraceable(ValueError):
    """The density cannot be written as one straight line of torch's operations; the message names those that can."""


def traceable(density: Density) -> nn.Module:
    """A module that gives the density's scores: embeddings (B, n, D) float32 -> (B, n), higher is more normal.

    Raises:
        NotTraceable: the density has no such module.
    """
    if isinstance(density, KernelDensity):
        return _kernel_density(density)
    if isinstance(density, OneClassSVM):
        return _one_class_svm(density)
    if isinstance(density, GaussianDensity | GaussianMixture):
        return Then(nn.Identity(), lambda queries: density.exact_scores(queries.double()).float())
    if isinstance(density, NearestNeighbours):
        nearest = NearestDistances(density.bank.vectors, density.configuration.neighbours)
        return Then(nearest, lambda distances: -distances.mean(dim=2))
    raise _refusal(getattr(density.configuration, "name", type(density).__name__))


class TracedKernelSum(nn.Module):
    """log( sum_j w_j exp(-gamma ||x - y_j||^2) ), as ``models.densities.kernel`` has it: (B, n, D) -> (B, n).

    Queries are no longer than ``longest``, so the largest exponent is known: where exp of it fits float32, terms are
    added up as they are, one pass over the tile instead of three.
    """

    def __init__(self, centres: Tensor, gamma: float, log_weights: Tensor | None = None, longest: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma
        squares = centres.double().square().sum(dim=1)
        offsets = -gamma * squares
        if log_weights is not None:
            offsets += log_weights
        self.largest = float(offsets.max())
        reach = 2 * gamma * longest * float(squares.max().sqrt())
        self.plain = reach + float(offsets.max() - offsets.min()) <= LARGEST_EXPONENT
        self.register_buffer("centres", centres.T.contiguous())
        self.register_buffer("offsets", offsets.float())
        self.register_buffer("factors", (offsets - self.largest).exp().float()[:, None])

    def forward(self, queries: Tensor) -> Tensor:
        log_sum = self._plain if self.plain else self._logarithms
        return torch.cat([log_sum(part) for part in _tiles(queries, QUERY_TILE, dim=1)], dim=1)

    def _plain(self, queries: Tensor) -> Tensor:
        scaled = queries * (2 * self.gamma)
        sums = [
            (scaled @ centres).exp() @ factors
            for centres, factors in zip(self._centre_tiles(), self._each_tile("factors"), strict=True)
        ]
        return (torch.cat(sums, dim=2).sum(dim=2)).log() + (self.largest - self.gamma * queries.square().sum(dim=2))

    def _logarithms(self, queries: Tensor) -> Tensor:
        scaled = queries * (2 * self.gamma)
        sums = [
            (scaled @ centres + offsets).logsumexp(dim=2, keepdim=True)
            for centres, offsets in zip(self._centre_tiles(), self._each_tile("offsets"), strict=True)
        ]
        return torch.cat(sums, dim=2).logsumexp(dim=2) - self.gamma * queries.square().sum(dim=2)

    def _centre_tiles(self) -> Iterator[Tensor]:
        return _tiles(self.get_buffer("centres"), CENTRE_TILE, dim=1)

    def _each_tile(self, name: str) -> Iterator[Tensor]:
        return _tiles(self.get_buffer(name), CENTRE_TILE, dim=0)


class NearestDistances(nn.Module):
    """Squared distances to the ``count`` nearest centres: (B, n, D) -> (B, n, count)."""

    def __init__(self, centres: Tensor, count: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("centres", centres.T.contiguous())
        self.register_buffer("squares", centres.double().square().sum(dim=1).float())

    def forward(self, queries: Tensor) -> Tensor:
        return torch.cat([self._nearest(part) for part in _tiles(queries, QUERY_TILE, dim=1)], dim=1)

    def _nearest(self, queries: Tensor) -> Tensor:
        found = [
            self._smallest(squares - 2 * (queries @ centres))  # without the query's own square, all alike
            for centres, squares in zip(
                _tiles(self.get_buffer("centres"), CENTRE_TILE, dim=1),
                _tiles(self.get_buffer("squares"), CENTRE_TILE, dim=0),
                strict=True,
            )
        ]
        nearest = found[0] if len(found) == 1 else self._smallest(torch.cat(found, dim=2))
        return torch.clamp_min(nearest + queries.square().sum(dim=2, keepdim=True), 0)

    def _smallest(self, values: Tensor) -> Tensor:
        if self.count == 1:
            return values.amin(dim=2, keepdim=True)
        return values.topk(min(self.count, values.shape[2]), dim=2, largest=False).values


class Linear(nn.Module):
    """One hyperplane: (B, n, D) -> (B, n)."""

    def __init__(self, normal: Tensor, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.register_buffer("normal", normal.double()[:, None])  # a matrix: by a vector, ONNX Runtime is wrong

    def forward(self, queries: Tensor) -> Tensor:
        return ((queries.double() @ self.get_buffer("normal"))[:, :, 0] - self.offset).float()


class Then(nn.Module):
    """A module, and what is made of its result."""

    def __init__(self, first: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = first
        self.then = then

    def forward(self, queries: Tensor) -> Tensor:
        return self.then(self.first(queries))


def _kernel_density(density: KernelDensity) -> nn.Module:
    gamma, vectors = density.gamma, density.bank.vectors
    if density.mode in ("exact", "compressed"):
        longest = 1.0 if density.reduction is None else density.reduction.longest
        log_sum: nn.Module = TracedKernelSum(vectors, gamma, density.state.get(LOG_WEIGHTS), longest)
    elif density.mode == "neighbours":
        nearest = NearestDistances(vectors, min(density.configuration.neighbours, len(vectors)))
        log_sum = Then(nearest, lambda distances: (-gamma * distances).logsumexp(dim=2))
    else:
        raise _refusal(f"kernel_density in the mode {density.mode}")
    return KernelScores(density, log_sum)


class KernelScores(nn.Module):
    """As ``KernelDensity.scores``, from a module that gives the logarithm of the sum: (B, n, D) -> (B, n)."""

    def __init__(self, density: KernelDensity, log_sum: nn.Module) -> None:
        super().__init__()
        self.projected, self.scores_of, self.log_sum = density.projected, density.scores_of, log_sum

    def forward(self, queries: Tensor) -> Tensor:
        projected, residuals = self.projected(queries)
        return self.scores_of(self.log_sum(projected), residuals)


def _one_class_svm(density: OneClassSVM) -> nn.Module:
    state = density.state
    offset = float(state["offset"])
    if density.configuration.kernel == "linear":
        return Linear(state["normal"], offset)
    log_sum = TracedKernelSum(state["support_vectors"], float(state["gamma"]), state["coefficients"].log())
    return Then(log_sum, lambda values: values.exp() - offset)


def _refusal(density: str) -> NotTraceable:
    return NotTraceable(
        f"the density {density} cannot be exported; these can: gaussian_density, gaussian_mixture, kernel_density in "
        "the modes exact, compressed and neighbours, nearest_neighbours, one_class_svm, rotation_classifier"
    )


def _tiles(values: Tensor, size: int, dim: int) -> Iterator[Tensor]:
    """Parts of at most ``size`` along a dimension whose length is known; slices, which engines fold into constants."""
    for start in range(0, values.shape[dim], size):
        yield values.narrow(dim, start, min(size, values.shape[dim] - start))
