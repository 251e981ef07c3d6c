"""Gaussians against SciPy's and scikit-learn's, and where a plain covariance would fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture as SklearnGaussianMixture

from models.densities import GaussianDensity, GaussianMixture, GaussianMixtureConfiguration
from models.densities.gaussian import ITERATIONS, SMALLEST_SHRINKAGE
from tests.models.embeddings import unit_vectors

TOLERANCE = 1e-6  # relative: scores are float32


def mixture(**settings: Any) -> GaussianMixture:
    return GaussianMixture(GaussianMixtureConfiguration(**settings))


def clusters(seed: int) -> NDArray[np.float32]:
    """Embeddings of three kinds of window; the kinds are the same for every seed."""
    centres = np.random.default_rng(99).standard_normal((3, 8))
    random = np.random.default_rng(seed)
    X = centres[random.integers(3, size=600)] + 0.2 * random.standard_normal((600, 8))
    return np.asarray(X / np.linalg.norm(X, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize(("count", "dimension"), [(500, 3), (1000, 64), (600, 512)])
def test_the_gaussian_is_scipys_with_ledoit_and_wolfs_covariance(count: int, dimension: int) -> None:
    X, Q = unit_vectors(count, dimension, 0), unit_vectors(40, dimension, 1, 2.0)
    estimate = LedoitWolf().fit(X.astype(np.float64))
    reference = multivariate_normal(estimate.location_, estimate.covariance_)
    gaussian = GaussianDensity().fit(X)
    assert gaussian.facts()["shrinkage"] == pytest.approx(estimate.shrinkage_, rel=1e-9)
    assert gaussian.log_peak == pytest.approx(reference.logpdf(estimate.location_), rel=1e-9)
    expected = reference.logpdf(Q.astype(np.float64)) - gaussian.log_peak
    np.testing.assert_allclose(gaussian.score_samples(Q), expected, rtol=TOLERANCE)


@pytest.mark.parametrize("count", [2, 600])
@pytest.mark.parametrize("spread", [1e-3, 0.5])
def test_512_dimensions_are_finite_and_well_conditioned(count: int, spread: float) -> None:
    """Of embeddings in a few directions only, as a trained encoder's are: the sample covariance has no inverse."""
    random = np.random.default_rng(0)
    directions = random.standard_normal((20, 512))
    X = 1 + spread * random.standard_normal((count, 20)) @ directions
    X[:, 400:] = 0
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    assert np.linalg.matrix_rank(np.cov(X.T.astype(np.float64)), tol=1e-12) < 400
    gaussian = GaussianDensity().fit(X)
    # C^(-1/2) has the condition number of C^(1/2); C's is at most its trace over its smallest eigenvalue.
    condition = np.linalg.cond(gaussian.state["whitening"][0].numpy()) ** 2
    assert condition <= 1.01 * 512 / SMALLEST_SHRINKAGE
    off = X + 0.1 * np.eye(512, dtype=np.float32)[np.arange(count) % 512]  # out of the plane
    scores, scores_off = gaussian.score_samples(X), gaussian.score_samples(off)
    assert np.isfinite(scores).all()
    assert np.isfinite(scores_off).all()
    assert scores.min() > scores_off.max()


@pytest.mark.parametrize("components", [1, 3, 6])
def test_the_mixture_is_scikit_learns(components: int) -> None:
    X, Q = clusters(0), clusters(1)
    kind = mixture(components=components, regularisation=1e-2).fit(X)
    reference = SklearnGaussianMixture(
        components, reg_covar=1e-2 * X.astype(np.float64).var(axis=0).mean(), max_iter=ITERATIONS, random_state=0
    ).fit(X.astype(np.float64))
    assert kind.facts()["converged"] is reference.converged_ is True
    expected = reference.score_samples(Q.astype(np.float64)) - kind.log_peak
    np.testing.assert_allclose(kind.score_samples(Q), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_no_score_is_above_zero_and_one_gaussians_peak_is() -> None:
    X = clusters(0)
    one, many = GaussianDensity().fit(X), mixture(components=3).fit(X)
    peak = one.state["means"].float().numpy()
    assert one.score_samples(peak) == pytest.approx(0, abs=1e-9)
    for kind in (one, many):
        grid = np.concatenate([X, kind.state["means"].float().numpy(), np.zeros((1, 8), np.float32)])
        assert kind.score_samples(grid).max() <= 0


def test_more_components_fit_embeddings_of_several_kinds_better() -> None:
    X, Q = clusters(0), clusters(1)
    log_likelihoods = []
    for kind in (GaussianDensity(), mixture(components=3)):
        log_likelihoods.append(float(kind.fit(X).score_samples(Q).mean()) + kind.log_peak)
    assert log_likelihoods[1] > log_likelihoods[0] + 1


@pytest.mark.parametrize("kind", [GaussianDensity(), mixture(components=3)], ids=["one", "three"])
def test_gradients_are_exact(kind: GaussianDensity | GaussianMixture) -> None:
    kind.fit(clusters(0))
    queries = torch.from_numpy(clusters(1)[:10]).double().requires_grad_()
    assert torch.autograd.gradcheck(kind.scores, (queries,))


def test_a_mixture_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.densities.gaussian.ITERATIONS", 1)
    assert mixture(components=6).fit(clusters(0)).facts()["converged"] is False
