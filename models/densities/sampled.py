"""The kernel sum estimated from a sample of the embeddings, and how far it may be off: an error bar on a density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from models.densities.kernel import LogKernelSum, tile_sizes

CONFIDENCE = 0.95
FEWEST_EFFECTIVE = 128.0  # embeddings of a sample; a sum that rests on fewer is not told (docs/results/kde.md)
PROBE = 512  # embeddings of a sample, the largest of whose kernels is the unit of a query's sums
GROWTH = 4  # times as many embeddings in the next sample
LARGEST_SHARE = 4  # a sample is at most a quarter of the bank; beyond it the whole sum costs hardly more
SMALLEST = 256  # embeddings in a sample
LISTS, LIST_TRAINING = 256, 64  # lists of the stratification, and embeddings that k-means sees for each
PART = 2**13  # embeddings assigned to lists at once


class Estimates(NamedTuple):
    """Logarithms of kernel sums.

    Attributes:
        log_sums: (n,).
        half_widths: (n,); the true one lies no further away at the confidence stated; 0 where it is the whole sum.
    """

    log_sums: Tensor
    half_widths: Tensor


class SampledLogKernelSum:
    """log( sum_j exp(-gamma ||x - y_j||^2) ), from as few of the y as each query needs.

    The y lie in runs of equal length along an order in which neighbours are alike (``stratified_rows``); from each run
    two are drawn at random, once, the same for all queries. So an estimate is one matrix product over the sample, with
    the squared difference of each pair as its own estimate of the variance within the run. From the variance follows
    the half-width, by Student's t with as many degrees of freedom as the pairs' shares of the variance leave
    (Satterthwaite, 1946). A sum that rests on few embeddings is not estimated: a sample that lacks them does not know
    it. How many it rests on is their effective number, (sum k)^2 / sum k^2 (Kish, 1965), which lacking them raises less
    than it raises the freedoms. A query whose half-width is above the tolerance or not told gets the next, larger
    sample, at last the whole sum; so does one whose gradient is asked for. Estimates are in float32.

    The confidence is met on average over queries and samples. Of the queries furthest from all embeddings, of which few
    are estimated, fewer are covered (docs/results/kde.md).

    Args:
        centres: the y, (N, D) float32; kept, not copied.
        gamma: inverse width of the kernel.
        samples: rows of the centres, (2, L) each, as ``stratified_rows`` gives them, the smallest first.
        tolerance: the largest half-width of the logarithm that is accepted.
        whole: the whole sum over the same centres.
    """

    def __init__(
        self, centres: Tensor, gamma: float, samples: Sequence[Tensor], tolerance: float, whole: LogKernelSum
    ) -> None:
        self._samples = [_StratifiedSum(centres, gamma, rows) for rows in samples]
        self._tolerance, self._whole = tolerance, whole

    def __call__(self, queries: Tensor) -> Tensor:
        """(n, D) float32 -> (n,)."""
        if torch.is_grad_enabled() and queries.requires_grad:
            return self._whole(queries)
        return self.estimates(queries).log_sums

    def estimates(self, queries: Tensor) -> Estimates:
        """(n, D) float32 -> the logarithms and their half-widths."""
        log_sums, half_widths = queries.new_zeros(2, len(queries)).unbind()
        open_ones = torch.arange(len(queries), device=queries.device)
        for sample in self._samples:
            found = sample(queries[open_ones])
            log_sums[open_ones], half_widths[open_ones] = found
            open_ones = open_ones[~(found.half_widths <= self._tolerance)]
            if not len(open_ones):
                return Estimates(log_sums, half_widths)
        log_sums[open_ones] = self._whole(queries[open_ones])
        half_widths[open_ones] = 0
        return Estimates(log_sums, half_widths)


def sample_sizes(smallest: int, count: int) -> list[int]:
    """How many of ``count`` embeddings each sample holds; the smallest fewer than asked for where that would be too
    large a share, and no sample at all where ``SMALLEST`` would be.
    """
    sizes = [min(smallest, count // (2 * LARGEST_SHARE) * 2)]
    if sizes[0] < SMALLEST:
        return []
    while sizes[-1] * LARGEST_SHARE <= count:
        sizes.append(sizes[-1] * GROWTH)
    return sizes[:-1]


def stratified_rows(centres: Tensor, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Draw samples of the centres, (N, D): rows (2, size // 2) on the CPU for each size, two from each run.

    The order: lists of k-means by FAISS, beside each other along the principal axis, and within a list along it.
    """
    if not sizes:
        return []
    order, random, samples = _order(centres, seed), np.random.default_rng(seed), []
    for size in sizes:
        starts = _edges(len(centres), size // 2)
        lengths = np.diff(starts)
        first, second = random.integers(lengths), random.integers(lengths - 1)
        second += second >= first
        samples.append(order[torch.from_numpy(starts[:-1] + np.stack([first, second]))])
    return samples


class _StratifiedSum:
    """The estimate from one sample: rows (2, L) of the centres, two of each run."""

    def __init__(self, centres: Tensor, gamma: float, rows: Tensor) -> None:
        self._centres, self._gamma = centres, gamma
        self._rows = rows.to(centres.device)
        lengths = torch.from_numpy(np.diff(_edges(len(centres), rows.shape[1]))).double()
        self._weights = (lengths / 2).float().to(centres.device)  # what one of the pair stands for
        self._probe = self._rows[0, :: -(-rows.shape[1] // PROBE)]
        # The variance of length * mean(pair), drawn without replacement, from one squared difference.
        self._variances = (lengths.square() / 4 * (1 - 2 / lengths)).float().to(centres.device)

    def __call__(self, queries: Tensor) -> Estimates:
        query_tile, centre_tile = tile_sizes(queries)
        pairs = centre_tile // 2
        scaled = queries * (2 * self._gamma)
        # What each query's kernels are counted in: the largest of the probe, so that however far a query is, float32
        # holds the fourth moments.
        probe, heights = self._chosen(self._probe)
        units = torch.cat([torch.addmm(heights, part, probe.T).amax(dim=1) for part in torch.split(scaled, query_tile)])
        moments = queries.new_zeros(4, len(queries), dtype=torch.float64)
        for start in range(0, self._rows.shape[1], pairs):
            tile = slice(start, start + pairs)
            weights, variances = self._weights[tile], self._variances[tile]
            square_weights, square_variances = weights.square(), variances.square()
            centres, heights = self._chosen(self._rows[:, tile].flatten())
            for part, unit, moment in zip(
                torch.split(scaled, query_tile),
                torch.split(units, query_tile),
                torch.split(moments, query_tile, dim=1),
                strict=True,
            ):
                kernels = torch.addmm(heights, part, centres.T).sub_(unit[:, None]).exp_()
                first, second = kernels.chunk(2, dim=1)
                moment[0] += torch.mv(first, weights)
                moment[0] += torch.mv(second, weights)
                moment[3] += 2 * torch.mv(first * second, square_weights)
                squares = first.sub_(second).square_()
                moment[3] += torch.mv(squares, square_weights)
                moment[1] += torch.mv(squares, variances)
                moment[2] += torch.mv(squares.square_(), square_variances)
        return _estimates(moments, units - self._gamma * queries.square().sum(dim=1))

    def _chosen(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (m, D), and their own part of a kernel's logarithm, -gamma ||y||^2 (m,)."""
        centres = self._centres[rows]
        return centres, -self._gamma * centres.square().sum(dim=1)


def _estimates(moments: Tensor, log_units: Tensor) -> Estimates:
    """From the sums of kernels, of their variances, of those variances' squares and of the kernels' own squares (4, n),
    in ``exp(log_units)``."""
    totals, variances, fourths, squares = moments
    freedoms = torch.where(variances > 0, variances.square() / fourths, math.inf)
    quantiles = torch.from_numpy(stdtrit(freedoms.cpu().numpy(), (1 + CONFIDENCE) / 2)).to(freedoms.device)
    relative = quantiles * variances.sqrt() / totals
    told = (totals.square() >= FEWEST_EFFECTIVE * squares) & (relative < 1)
    half_widths = torch.where(told, -torch.log1p(-relative.clamp_max(0.999999)), math.inf)
    return Estimates((totals.log() + log_units).float(), half_widths.float())


def _edges(count: int, runs: int) -> NDArray[np.int64]:
    """Where runs of equal length, to one, begin and end: (runs + 1,)."""
    return np.arange(runs + 1) * count // runs


def _order(centres: Tensor, seed: int) -> Tensor:
    """An order of the centres in which neighbours are alike: (N,) rows, on the CPU."""
    shown = centres[:: max(1, len(centres) // (LISTS * LIST_TRAINING))].cpu().numpy()
    axis = torch.from_numpy(np.linalg.eigh(np.cov(shown.T))[1][:, -1].astype(np.float32)).to(centres.device)
    clustering = faiss.Kmeans(shown.shape[1], min(LISTS, max(1, len(shown) // LIST_TRAINING)), seed=seed)
    clustering.train(shown)
    means = torch.from_numpy(clustering.centroids).to(centres.device)
    means = means[torch.argsort(means @ axis)]
    squares = means.square().sum(dim=1) / 2
    lists, along = (
        torch.cat(parts).cpu().numpy()
        for parts in zip(
            *(((squares - part @ means.T).argmin(dim=1), part @ axis) for part in torch.split(centres, PART)),
            strict=True,
        )
    )
    return torch.from_numpy(np.lexsort((along, lists)))
