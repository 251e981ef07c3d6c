"""MMD against a slow definition, its known values, and uniform points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import hyp0f1

from training.mmd import GAMMA, SAMPLES, squared_mmd, squared_mmd_to_uniform, uniform_on_sphere


def slow(first: NDArray[np.float64], second: NDArray[np.float64], gamma: float) -> float:
    """The definition, pair after pair."""

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return math.exp(-gamma * sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))

    def within(sample: NDArray[np.float64]) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(sample) for j, y in enumerate(sample) if i != j]
        return math.fsum(pairs) / len(pairs)

    between = [kernel(x, y) for x in first for y in second]
    return within(first) + within(second) - 2 * math.fsum(between) / len(between)


@pytest.mark.parametrize("gamma", [0.3, GAMMA, 10.0])
def test_it_is_its_definition(gamma: float) -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=(7, 3)), random.normal(1.0, size=(11, 3))
    found = squared_mmd(torch.from_numpy(first), torch.from_numpy(second), gamma)
    assert found == pytest.approx(slow(first, second, gamma), abs=1e-12)


def test_of_two_uniform_samples_it_is_zero_on_average() -> None:
    """Unbiased: a sample is never paired with itself, so an estimate may lie on either side of zero."""
    estimates = [
        squared_mmd(uniform_on_sphere(40, 4, 2 * seed), uniform_on_sphere(40, 4, 2 * seed + 1)) for seed in range(200)
    ]
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates)) < 3 * error
    assert min(estimates) < 0 < max(estimates)


@pytest.mark.parametrize("dimension", [2, 16, 128])
def test_of_a_point_it_is_what_the_sphere_gives(dimension: int) -> None:
    """1 - E k(u, u'), and by symmetry E k(x, u) of any x is E k(u, u') = exp(-2 gamma) 0F1(D / 2, gamma^2)."""
    point = np.zeros((SAMPLES, dimension), np.float32)
    point[:, 0] = 1
    expected = 1 - math.exp(-2 * GAMMA) * float(hyp0f1(dimension / 2, GAMMA**2))
    assert squared_mmd_to_uniform(point) == pytest.approx(expected, abs=0.02)


def test_what_spreads_is_nearer_to_uniform() -> None:
    random = np.random.default_rng(0)
    distances = []
    for spread in (0.05, 0.2, 1.0, 20.0):
        points = np.eye(8)[0] + spread * random.normal(size=(300, 8))
        distances.append(squared_mmd_to_uniform(points / np.linalg.norm(points, axis=1, keepdims=True)))
    assert distances == sorted(distances, reverse=True)
    assert abs(distances[-1]) < 0.01 < 0.5 < distances[0]


def test_uniform_points_have_length_one_and_no_direction() -> None:
    points = uniform_on_sphere(4000, 5, 0)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert points.mean(dim=0).abs().max() < 0.03
    torch.testing.assert_close(points.T @ points / 4000, torch.eye(5, dtype=torch.float64) / 5, atol=0.02, rtol=0)


def test_one_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="two vectors of either sample at least, got 1 and 3"):
        squared_mmd(torch.zeros(1, 2), torch.zeros(3, 2))
