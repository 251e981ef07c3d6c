"""Maximum mean discrepancy: how far embeddings are from uniform on the sphere (Sohn et al.)."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

GAMMA = 2.0  # of Wang and Isola's uniformity (ICML 2020); which kernel Sohn et al. took is not known here
SAMPLES = 2000  # of either distribution: kernel matrices of 32 MB
UNIFORM_SEED = 0  # the same uniform sample for every representation of one dimension


def squared_mmd(first: Tensor, second: Tensor, gamma: float = GAMMA) -> float:
    """MMD^2(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y) with the Gaussian kernel k(x, y) = exp(-gamma ||x - y||^2).

    The unbiased estimate of Gretton et al. (JMLR 2012, Lemma 6): no sample is paired with itself. Its expectation is 0
    where P is Q, so an estimate may lie below 0. Computed in float64.

    Args:
        first: (n, D), a sample of P.
        second: (m, D), a sample of Q.
        gamma: inverse width of the kernel.

    Returns:
        At most 2.

    Raises:
        ValueError: if either has fewer than two vectors.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"MMD needs two vectors of either sample at least, got {len(first)} and {len(second)}")
    first, second = first.double(), second.double()
    return _within(first, gamma) + _within(second, gamma) - 2 * float(_kernel(first, second, gamma).mean())


def squared_mmd_to_uniform(embeddings: NDArray[Any]) -> float:
    """``squared_mmd`` between embeddings and as many points uniform on the sphere.

    Args:
        embeddings: (N, D) of length 1; the first 2000 count.
    """
    sample = torch.from_numpy(embeddings[:SAMPLES])
    count, dimension = sample.shape
    return squared_mmd(sample, uniform_on_sphere(count, dimension, UNIFORM_SEED))


def uniform_on_sphere(count: int, dimension: int, seed: int) -> Tensor:
    """(count, dimension) float64 vectors of length 1, their directions uniform."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(normal, dim=1)


def _kernel(first: Tensor, second: Tensor, gamma: float) -> Tensor:
    """(n, D), (m, D) -> (n, m)."""
    return torch.exp(-gamma * torch.cdist(first, second).square())


def _within(sample: Tensor, gamma: float) -> float:
    """Mean of k over pairs of different vectors of (n, D)."""
    kernel = _kernel(sample, sample, gamma)
    return float((kernel.sum() - kernel.trace()) / (len(sample) * (len(sample) - 1)))
