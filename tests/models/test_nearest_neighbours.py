"""Distances to the nearest embeddings, against all distances sorted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.densities import NearestNeighbours, NearestNeighboursConfiguration
from models.densities.bank import DIFFERENCES
from tests.models.embeddings import squared_distances, unit_vectors

TOLERANCE = 1e-6


def nearest(neighbours: int) -> NearestNeighbours:
    return NearestNeighbours(NearestNeighboursConfiguration(neighbours=neighbours))


@pytest.mark.parametrize("neighbours", [1, 2, 7])
@pytest.mark.parametrize(("queries", "bank", "dimension"), [(3, 50, 4), (700, 300, 64), (5, 1000, 512)])
def test_it_is_the_mean_of_the_smallest_squared_distances(
    neighbours: int, queries: int, bank: int, dimension: int
) -> None:
    X, Q = unit_vectors(bank, dimension, 0), unit_vectors(queries, dimension, 1)
    expected = -np.sort(squared_distances(Q, X), axis=1)[:, :neighbours].mean(axis=1)
    scores = nearest(neighbours).fit(X).score_samples(Q)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)


def test_of_unit_vectors_it_is_twice_the_cosine_distance() -> None:
    X, Q = unit_vectors(200, 16, 0), unit_vectors(50, 16, 1)
    cosine_distance = 1 - (Q.astype(np.float64) @ X.T.astype(np.float64)).max(axis=1)
    np.testing.assert_allclose(nearest(1).fit(X).score_samples(Q), -2 * cosine_distance, rtol=0, atol=TOLERANCE)


def test_the_gradient_points_to_the_neighbours_over_several_tiles() -> None:
    dimension = 512
    X, Q = unit_vectors(20, dimension, 0), unit_vectors(DIFFERENCES // (2 * dimension) + 9, dimension, 1)
    queries = torch.from_numpy(Q).requires_grad_()
    [gradient] = torch.autograd.grad(nearest(2).fit(X).scores(queries).sum(), queries)
    distances = squared_distances(Q, X)
    _, second, third = np.sort(distances, axis=1)[:, :3].T
    clear = third - second > TOLERANCE  # no other can be taken for the second
    expected = 2 * (X[np.argsort(distances, axis=1)[:, :2]] - Q[:, None]).mean(axis=1)
    np.testing.assert_allclose(gradient.numpy()[clear], expected[clear], rtol=0, atol=TOLERANCE)
    assert clear.mean() > 0.9


def test_what_was_seen_scores_zero_and_nothing_scores_above() -> None:
    X = unit_vectors(300, 24, 0)
    scores = nearest(1).fit(X).score_samples(np.concatenate([X, unit_vectors(300, 24, 1)]))
    np.testing.assert_allclose(scores[:300], 0, atol=TOLERANCE)
    assert (scores <= 0).all()
    assert (scores[300:] < -1e-3).all()
