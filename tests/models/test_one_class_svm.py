"""The one-class SVM against scikit-learn's, which fits it, and against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.svm import OneClassSVM as SklearnOneClassSVM

from models.densities import OneClassSVM, OneClassSVMConfiguration, paper_gamma
from models.densities.kernel import CENTRE_TILE
from tests.models.embeddings import squared_distances, unit_vectors

TOLERANCE = 2e-6  # of a scaled decision function, which lies between -1 and 1


def svm(**settings: Any) -> OneClassSVM:
    return OneClassSVM(OneClassSVMConfiguration(**settings))


def decisions(X: NDArray[np.float32], Q: NDArray[np.float32], nu: float, **settings: Any) -> NDArray[np.float64]:
    """scikit-learn's decision function, divided by the sum of its coefficients."""
    machine = SklearnOneClassSVM(nu=nu, **settings).fit(X.astype(np.float64))
    scaled: NDArray[np.float64] = machine.decision_function(Q.astype(np.float64)) / (nu * len(X))
    return scaled


@pytest.mark.parametrize("nu", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("count", "dimension", "spread"), [(300, 8, 0.5), (600, 64, 0.2), (200, 512, 0.2)])
def test_rbf_is_scikit_learns_decision_function(nu: float, count: int, dimension: int, spread: float) -> None:
    X, Q = unit_vectors(count, dimension, 0, spread), unit_vectors(50, dimension, 1, 2 * spread)
    expected = decisions(X, Q, nu, kernel="rbf", gamma=paper_gamma(X))
    np.testing.assert_allclose(svm(nu=nu).fit(X).score_samples(Q), expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(expected) > 100 * TOLERANCE


def test_rbf_agrees_over_several_tiles_of_support_vectors() -> None:
    X, Q = unit_vectors(CENTRE_TILE + 300, 4, 0), unit_vectors(30, 4, 1)
    machine = svm(nu=0.99, gamma=2.0).fit(X)
    assert machine.facts()["support_count"] > CENTRE_TILE
    kernels = np.exp(-2.0 * squared_distances(Q, machine.state["support_vectors"].numpy()))
    expected = kernels @ machine.state["coefficients"].numpy() - machine.facts()["offset"]
    np.testing.assert_allclose(machine.score_samples(Q), expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(machine.state["coefficients"].sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("nu", [0.1, 0.5])
@pytest.mark.parametrize("dimension", [8, 512])
def test_linear_is_scikit_learns_decision_function(nu: float, dimension: int) -> None:
    X, Q = unit_vectors(400, dimension, 0), unit_vectors(50, dimension, 1, 2.0)
    scores = svm(kernel="linear", nu=nu).fit(X).score_samples(Q)
    np.testing.assert_allclose(scores, decisions(X, Q, nu, kernel="linear"), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_scores_of_banks_of_different_size_compare(kernel: str) -> None:
    """Every embedding ten times over is the same data; scikit-learn's decision function is ten times as large."""
    X, Q = unit_vectors(150, 16, 0), unit_vectors(40, 16, 1)
    once, repeated = svm(kernel=kernel).fit(X), svm(kernel=kernel).fit(np.tile(X, (10, 1)))
    # To libsvm's stopping tolerance, 1e-3 of the decision function before it is divided.
    np.testing.assert_allclose(repeated.score_samples(Q), once.score_samples(Q), rtol=0, atol=2e-3 / (0.5 * 150))


@pytest.mark.parametrize("nu", [0.05, 0.3])
def test_nu_bounds_the_share_left_outside(nu: float) -> None:
    X = unit_vectors(500, 8, 0)
    machine = svm(nu=nu).fit(X)
    rounding = 1e-3 / (nu * len(X))  # libsvm's stopping tolerance
    assert np.mean(machine.score_samples(X) < -rounding) <= nu
    assert machine.facts()["support_count"] >= nu * len(X)


def test_gamma_is_the_papers_unless_set() -> None:
    X = unit_vectors(200, 48, 0)
    assert svm().fit(X).facts()["gamma"] == pytest.approx(10 / (48 * X.astype(np.float64).var()), rel=1e-9)
    assert svm(gamma=2.5).fit(X).facts()["gamma"] == 2.5
