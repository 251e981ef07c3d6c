"""A weighted bank: a few thousand centres in place of all embeddings, at the cost of a few thousand."""

from __future__ import annotations

from typing import Self

import faiss
import numpy as np
import torch
from torch import Tensor

ITERATIONS = 10  # of k-means
LOG_WEIGHTS, METRIC = "log_weights", "metric"


class Cells:
    """Cells of embeddings around the nearest of a few centres, and the weighted centres that stand for all in them.

    The embeddings of cell c are taken for a Gaussian around their mean m_c with the covariance t_c S: S the covariance
    within all cells together, t_c the cell's own spread relative to it, tr(S_c) / tr(S). A Gaussian kernel summed over
    a Gaussian cell of n_c embeddings is a Gaussian again,

        n_c det(I + 2 gamma t_c S)^(-1/2) exp(-gamma (x - m_c)' (I + 2 gamma t_c S)^(-1) (x - m_c)).

    The determinant is each cell's own and goes into its weight. The metric in the exponent is taken with t_c = 1: one
    linear map (I + 2 gamma S)^(-1/2) of queries and centres, and a query costs what it costs without.

    Args:
        centres: (M, d), which decide the cells.
    """

    def __init__(self, centres: Tensor) -> None:
        count, dimension = centres.shape
        self._index = faiss.IndexFlatL2(dimension)
        self._index.add(centres.cpu().numpy())
        self._counts = torch.zeros(count, dtype=torch.float64)
        self._sums = torch.zeros(count, dimension, dtype=torch.float64)
        self._squares = torch.zeros(count, dtype=torch.float64)  # of the lengths
        self._products = torch.zeros(dimension, dimension, dtype=torch.float64)

    @classmethod
    def of(cls, sample: Tensor, number: int, seed: int) -> Self:
        """``number`` cells, or as many as there are embeddings in the sample (n, d), by FAISS's k-means."""
        vectors = np.ascontiguousarray(sample.cpu().numpy())
        count, dimension = vectors.shape
        means = faiss.Kmeans(
            dimension,
            min(number, count),
            niter=ITERATIONS,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=count,
        )
        means.train(vectors)
        return cls(torch.from_numpy(means.centroids))

    def add(self, embeddings: Tensor) -> None:
        """Take embeddings (n, d) into account."""
        part = embeddings.cpu().contiguous()
        _, nearest = self._index.search(part.numpy(), 1)
        cells, part = torch.from_numpy(nearest[:, 0]), part.double()
        self._counts += torch.bincount(cells, minlength=len(self._counts))
        self._sums.index_add_(0, cells, part)
        self._squares.index_add_(0, cells, part.square().sum(dim=1))
        self._products += part.T @ part

    def compressed(self, gamma: float) -> tuple[Tensor, dict[str, Tensor]]:
        """What stands for all that was added; an empty cell stands for nothing and is left out.

        Returns:
            The means after the map, (M, d) float32, and by name the logarithms of their weights, (M,), and the map,
            (d, d): x @ map.
        """
        used = self._counts > 0
        counts, sums, squares = self._counts[used], self._sums[used], self._squares[used]
        means = sums / counts[:, None]
        within = (self._products - sums.T @ means) / counts.sum()  # S
        spreads = (squares / counts - means.square().sum(dim=1)).clamp_min(0)  # tr(S_c)
        variances, axes = torch.linalg.eigh(within)
        variances = variances.clamp_min(0)
        relative = spreads / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)  # t_c
        log_determinants = torch.log1p(2 * gamma * relative[:, None] * variances).sum(dim=1)
        metric = axes / (1 + 2 * gamma * variances).sqrt()
        log_weights = counts.log() - log_determinants / 2
        return (means @ metric).float(), {LOG_WEIGHTS: log_weights.float(), METRIC: metric.float().contiguous()}
