from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor, nn

from models.densities.kernel import CENTRE_TILE, QUERY_TILE, LogKernelSum, Precision
from tests.models.embeddings import squared_distances, unit_vectors

HALF: tuple[Precision, ...] = ("bfloat16", "float16")
ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}


def oracle(
    queries: NDArray[np.float32], centres: NDArray[np.float32], gamma: float, log_weights: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    exponents = -gamma * squared_distances(queries, centres) + (0 if log_weights is None else log_weights)
    return np.asarray(logsumexp(exponents, axis=1), np.float64)


def log_sums(
    queries: NDArray[np.float32],
    centres: NDArray[np.float32],
    gamma: float,
    log_weights: NDArray[np.float32] | None = None,
    precision: Precision = "float32",
) -> NDArray[np.float32]:
    weights = None if log_weights is None else torch.from_numpy(log_weights)
    return LogKernelSum(torch.from_numpy(centres), gamma, weights, precision)(torch.from_numpy(queries)).numpy()


def rounded(vectors: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    return torch.from_numpy(vectors).to(getattr(torch, precision)).float().numpy()


@pytest.mark.parametrize("gamma", [0.01, 1.0, 15.0, 34.0, 36.0, 1000.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_weighted_sums_agree_with_float64(gamma: float, scale: float) -> None:
    Y, Q = unit_vectors(CENTRE_TILE + 5, 24, 0), unit_vectors(QUERY_TILE + 3, 24, 1)
    log_weights = (scale * np.random.default_rng(2).standard_normal(len(Y))).astype(np.float32)
    expected = oracle(Q, Y, gamma, log_weights)
    # Distances come from inner products: an error of 1e-6 in them, times gamma.
    np.testing.assert_allclose(log_sums(Q, Y, gamma, log_weights), expected, rtol=1e-6, atol=1e-5 + 1e-6 * gamma)


def test_a_light_centre_nearby_counts_more_than_a_heavy_one_far_away() -> None:
    """Beside the heavy one's weight its own is 0 in float32; its kernel makes up for that."""
    Y, Q = np.eye(2, dtype=np.float32), np.array([[0.96, -0.28]], np.float32)
    log_weights = np.array([-69, 0], np.float32)
    np.testing.assert_allclose(log_sums(Q, Y, 35, log_weights), oracle(Q, Y, 35, log_weights), rtol=0, atol=1e-4)


def test_a_weight_of_zero_takes_a_centre_away() -> None:
    Y, Q = unit_vectors(40, 24, 0), unit_vectors(9, 24, 1)
    log_weights = np.where(np.arange(40) < 30, 0, -np.inf).astype(np.float32)
    np.testing.assert_allclose(log_sums(Q, Y, 10, log_weights), oracle(Q, Y[:30], 10, None), atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", *HALF])
def test_a_query_far_away_is_summed_in_log_space_and_moves_no_other(precision: Precision) -> None:
    """Ten times as far as any centre, its terms all underflow; a hundred times, exp(2 gamma x.y) overflows."""
    Y, Q = unit_vectors(300, 24, 0), unit_vectors(6, 24, 1)
    mixed = Q.copy()
    mixed[1] *= -10
    mixed[4] *= 100
    scores = log_sums(mixed, Y, 10.0, precision=precision)
    np.testing.assert_allclose(scores[[1, 4]], oracle(mixed[[1, 4]], Y, 10.0, None), rtol=1e-5)
    alone = log_sums(Q, Y, 10.0, precision=precision)
    np.testing.assert_array_equal(scores[[0, 2, 3, 5]], alone[[0, 2, 3, 5]])


def test_terms_whose_two_factors_underflow_only_together_are_summed_in_log_space() -> None:
    """exp(2 gamma x.y) and exp(-gamma y.y) are near exp(-65) and exp(-62), each a float32; their product is none."""
    Y, Q = 2.5 * unit_vectors(1, 24, 0).repeat(9, axis=0), -1.3 * unit_vectors(1, 24, 0)
    np.testing.assert_allclose(log_sums(Q, Y, 10.0), oracle(Q, Y, 10.0, None), rtol=1e-5)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize(("dimension", "spread"), [(64, 0.3), (512, 1.0)])
def test_half_precision_is_the_sum_of_rounded_points(precision: Precision, dimension: int, spread: float) -> None:
    Y, Q = unit_vectors(3000, dimension, 0, spread), unit_vectors(200, dimension, 1, spread)
    gamma = 10.0
    scores = log_sums(Q, Y, gamma, precision=precision)
    assert np.abs(scores - oracle(Q, Y, gamma, None)).max() / gamma < ROUNDING[precision]
    origin = Y.mean(axis=0, dtype=np.float64).astype(np.float32)
    moved_queries = rounded((Q - origin) * (2 * gamma), precision) / (2 * gamma)
    moved = oracle(moved_queries, rounded(Y - origin, precision), gamma, None)
    # What is left is each product's own rounding on the CPU, which differs from term to term and nearly cancels.
    assert np.abs(scores - moved).max() < ROUNDING[precision] / 2
    plain = log_sums(Q, Y, gamma)
    assert np.abs(scores - plain).max() > 0  # it was rounded at all


@pytest.mark.parametrize("precision", HALF)
def test_gradients_are_float32s_whatever_the_precision(precision: Precision) -> None:
    Y, Q = torch.from_numpy(unit_vectors(300, 24, 0)), torch.from_numpy(unit_vectors(7, 24, 1))
    gradients: list[Tensor] = []
    for kind in ("float32", precision):
        queries = Q.clone().requires_grad_()
        gradients += torch.autograd.grad(LogKernelSum(Y, 10.0, precision=kind)(queries).sum(), queries)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    distances = torch.from_numpy(squared_distances(Q.numpy(), Y.numpy()))
    shares = torch.softmax(-10.0 * distances, dim=1)
    expected = -20.0 * (Q.double() - shares @ Y.double())
    torch.testing.assert_close(gradients[0].double(), expected, rtol=0, atol=1e-4)


def test_centres_are_kept_and_not_copied() -> None:
    Y = torch.from_numpy(unit_vectors(300, 24, 0))
    assert LogKernelSum(Y, 10.0)._centres.data_ptr() == Y.data_ptr()


def test_no_queries_have_no_sums() -> None:
    assert LogKernelSum(torch.from_numpy(unit_vectors(30, 24, 0)), 10.0)(torch.empty(0, 24)).shape == (0,)


def test_a_traced_sum_holds_for_queries_that_it_was_not_traced_with() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_sum = LogKernelSum(torch.from_numpy(unit_vectors(300, 24, 0)), 10.0)

        def forward(self, queries: Tensor) -> Tensor:
            return self.log_sum(queries)

    Q = torch.from_numpy(unit_vectors(6, 24, 1))
    program = torch.export.export(Sum(), (Q,)).module()
    far = -100 * Q
    for queries in (Q, far):
        torch.testing.assert_close(program(queries), Sum()(queries), rtol=1e-6, atol=1e-5)
    assert math.isfinite(float(program(far).sum()))


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", *HALF])
def test_cuda_sums_as_the_cpu_does(precision: Precision) -> None:
    Y, Q = unit_vectors(20_000, 512, 0), unit_vectors(5000, 512, 1)
    gamma = 10.0
    on_cuda = LogKernelSum(torch.from_numpy(Y).cuda(), gamma, None, precision)(torch.from_numpy(Q).cuda()).cpu().numpy()
    tolerance = 1e-5 if precision == "float32" else ROUNDING[precision]
    np.testing.assert_allclose(on_cuda[:100] / gamma, oracle(Q[:100], Y, gamma, None) / gamma, rtol=0, atol=tolerance)
