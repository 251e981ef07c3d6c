"""What every density promises, whichever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from models.densities import Density, DensityConfiguration, create_density
from tests.models.embeddings import unit_vectors

# One for each way that a score is computed in.
DENSITIES: dict[str, dict[str, Any]] = {
    "kde": {"name": "kernel_density"},
    "kde compressed": {"name": "kernel_density", "mode": "compressed", "centres": 40, "reduction": {"dimension": 2}},
    "kde neighbours": {"name": "kernel_density", "mode": "neighbours", "neighbours": 9},
    "svm": {"name": "one_class_svm"},
    "linear svm": {"name": "one_class_svm", "kernel": "linear", "nu": 0.2},
    "gaussian": {"name": "gaussian_density"},
    "mixture": {"name": "gaussian_mixture", "components": 3},
    "nearest": {"name": "nearest_neighbours"},
    "nearest two": {"name": "nearest_neighbours", "neighbours": 2},
}
OF_NEIGHBOURS = ("kde neighbours", "nearest", "nearest two")
HOLDS_OUT = "kde compressed"  # a tenth of what it is fitted on, to measure its error
CONSTANT_SAYS_NOTHING = ("kde", "kde compressed", "kde neighbours", "svm", "gaussian", "mixture")
densities = pytest.mark.parametrize("name", DENSITIES)


def configured(name: str) -> DensityConfiguration:
    configuration: DensityConfiguration = TypeAdapter(DensityConfiguration).validate_python(DENSITIES[name])
    return configuration


def density(name: str) -> Density:
    return create_density(configured(name))


def assert_close(scores: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equal but for how sums are rounded."""
    np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=2e-6)


# --- scores -----------------------------------------------------------------------------------------------------------


@densities
def test_higher_is_more_normal(name: str) -> None:
    """From the middle of the embeddings outwards, each step further away scores lower."""
    X = unit_vectors(300, 16, 0, spread=0.2)
    direction = unit_vectors(1, 16, 1)[0] * np.where(np.arange(16) % 2, 1, -1).astype(np.float32)
    middle = X.mean(axis=0)
    queries = np.stack([middle * (1 - reach) + direction * reach for reach in (0.0, 0.1, 0.2, 0.3)]).astype(np.float32)
    scores = density(name).fit(X).score_samples(queries)
    assert scores.dtype == np.float32
    assert (np.diff(scores) < 0).all()


@densities
def test_what_it_was_fitted_on_scores_above_what_it_was_not(name: str) -> None:
    X = unit_vectors(300, 16, 0, spread=0.2)
    kind = density(name).fit(X)
    fresh, foreign = unit_vectors(200, 16, 1, spread=0.2), unit_vectors(200, 16, 2, spread=2.0)
    assert np.median(kind.score_samples(X)) > np.quantile(kind.score_samples(foreign), 0.9)
    assert np.median(kind.score_samples(fresh)) > np.quantile(kind.score_samples(foreign), 0.9)


@densities
def test_scores_are_finite_for_any_embeddings(name: str) -> None:
    """Fewer embeddings than dimensions, some channels always 0, and queries from everywhere."""
    X = unit_vectors(40, 64, 0)
    X[:, ::3] = 0
    queries = np.concatenate([X, -X, 1e3 * X, np.eye(64, dtype=np.float32), np.zeros((1, 64), np.float32)])
    assert np.isfinite(density(name).fit(X).score_samples(queries)).all()


@densities
def test_a_score_does_not_depend_on_the_queries_beside_it(name: str) -> None:
    X, queries = unit_vectors(200, 24, 0), unit_vectors(5000, 24, 1)
    kind = density(name).fit(X)
    together = kind.score_samples(queries)
    parts = [kind.score_samples(part) for part in np.split(queries, [1, 20, 517])]
    assert_close(np.concatenate(parts), together)
    order = np.random.default_rng(2).permutation(len(queries))
    assert_close(kind.score_samples(queries[order]), together[order])


@densities
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    X, queries = unit_vectors(200, 6, 0), torch.from_numpy(unit_vectors(20, 6, 1))
    kind = density(name).fit(X)
    inputs = queries.clone().requires_grad_()
    [gradient] = torch.autograd.grad(kind.scores(inputs).sum(), inputs)
    step = 2e-3  # float32: a smaller one rounds away, a larger one sees the curvature
    differences = torch.zeros_like(queries)
    for k, offset in enumerate(step * torch.eye(6)):
        differences[:, k] = (kind.scores(queries + offset) - kind.scores(queries - offset)) / (2 * step)
    assert gradient.norm() > 0
    close = torch.isclose(gradient, differences, rtol=0.02, atol=0.01 * float(gradient.abs().max()))
    # There is a kink wherever another embedding becomes a neighbour.
    assert close.float().mean() > (0.8 if name in OF_NEIGHBOURS else 0.999)
    torch.testing.assert_close(kind.scores(inputs).detach(), kind.scores(queries), rtol=1e-5, atol=1e-6)


@densities
def test_tensors_and_arrays_of_any_layout_score_alike(name: str) -> None:
    X, queries = unit_vectors(90, 12, 0), unit_vectors(30, 12, 1)
    kind = density(name).fit(np.asfortranarray(X))
    expected = kind.score_samples(queries)
    turned = torch.from_numpy(np.ascontiguousarray(queries.T)).T
    for same in (torch.from_numpy(queries), turned, np.asfortranarray(queries)):
        assert_close(kind.score_samples(same), expected)


@densities
def test_no_queries_have_no_scores(name: str) -> None:
    assert density(name).fit(unit_vectors(20, 4, 0)).score_samples(np.empty((0, 4), np.float32)).shape == (0,)


# --- what it takes ----------------------------------------------------------------------------------------------------


@densities
@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize(
    ("queries", "reason"),
    [
        (np.ones((3, 5), np.float32), r"\(n, 4\), not \(3, 5\)"),
        (np.ones(4, np.float32), "not"),
        (np.array([[0, 0, 0, np.nan]], np.float32), "finite"),
        (np.array([[0, np.inf, 0, 0]], np.float32), "finite"),
    ],
    ids=["wrong dimension", "one vector", "NaN", "infinite"],
)
def test_what_cannot_be_scored_is_refused(name: str, kind: str, queries: NDArray[np.float32], reason: str) -> None:
    fitted = density(name).fit(unit_vectors(20, 4, 0))
    with pytest.raises(ValueError, match=reason):
        fitted.score_samples(queries if kind == "array" else torch.from_numpy(queries))


@densities
def test_scoring_before_fit_says_so(name: str) -> None:
    with pytest.raises(RuntimeError, match="call fit first"):
        density(name).score_samples(unit_vectors(2, 4, 0))


BAD_EMBEDDINGS = {
    "empty": np.empty((0, 4), np.float32),
    "no dimensions": np.empty((4, 0), np.float32),
    "one vector": np.ones(4, np.float32),
    "a map": np.ones((2, 2, 4), np.float32),
    "NaN": np.array([[1, 2], [np.nan, 1]], np.float32),
    "infinite": np.array([[1, 2], [np.inf, 1]], np.float32),
}


@densities
@pytest.mark.parametrize("embeddings", BAD_EMBEDDINGS.values(), ids=BAD_EMBEDDINGS.keys())
def test_fit_refuses_what_are_no_embeddings(name: str, embeddings: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"expected embeddings \(n, D\)|must be finite"):
        density(name).fit(embeddings)


@pytest.mark.parametrize("name", CONSTANT_SAYS_NOTHING)
def test_embeddings_that_are_all_the_same_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="all the same"):
        density(name).fit(np.full((9, 3), 0.1, np.float32))


@pytest.mark.parametrize(("name", "fewest"), [("gaussian", 2), ("mixture", 3), ("nearest two", 2)])
def test_the_fewest_embeddings_that_it_learns_from(name: str, fewest: int) -> None:
    X = unit_vectors(fewest, 4, 0)
    density(name).check_samples(fewest)
    assert np.isfinite(density(name).fit(X).score_samples(X)).all()
    reason = f"needs at least {fewest} embeddings, not {fewest - 1}"
    with pytest.raises(ValueError, match=reason):
        density(name).check_samples(fewest - 1)
    with pytest.raises(ValueError, match=reason):
        density(name).fit(X[:-1])


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "parzen"},
        {"name": "kernel_density", "components": 2},
        {"name": "one_class_svm", "nu": 0},
        {"name": "one_class_svm", "nu": 1.1},
        {"name": "one_class_svm", "kernel": "poly"},
        {"name": "one_class_svm", "gamma": 0},
        {"name": "one_class_svm", "kernel": "linear", "gamma": 1},
        {"name": "gaussian_density", "components": 2},
        {"name": "gaussian_mixture", "components": 0},
        {"name": "gaussian_mixture", "regularisation": 0},
        {"name": "nearest_neighbours", "neighbours": 0},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(DensityConfiguration).validate_python(settings)


# --- storage ----------------------------------------------------------------------------------------------------------


@densities
def test_a_saved_density_scores_the_same_to_the_last_bit(name: str, tmp_path: Path) -> None:
    X, queries = unit_vectors(300, 24, 0), unit_vectors(70, 24, 1)
    kind = density(name).fit(X)
    kind.save(tmp_path)
    restored = density(name).restore(tmp_path)
    assert (restored.samples, restored.dimension) == (270 if name == HOLDS_OUT else 300, 24)
    assert restored.facts() == kind.facts()
    np.testing.assert_array_equal(restored.score_samples(queries), kind.score_samples(queries))


@densities
def test_fit_again_replaces_all_and_keeps_no_hold_on_the_callers_array(name: str) -> None:
    X, other, queries = unit_vectors(50, 24, 0), unit_vectors(60, 24, 3), unit_vectors(9, 24, 1)
    kind = density(name).fit(X)
    kind.fit(other)
    expected = density(name).fit(other.copy()).score_samples(queries)
    other[:] = 0
    assert kind.samples == (54 if name == HOLDS_OUT else 60)
    np.testing.assert_array_equal(kind.score_samples(queries), expected)


@pytest.mark.cuda
@densities
def test_cuda_scores_as_the_cpu_does(name: str, tmp_path: Path) -> None:
    X, queries = unit_vectors(5000, 128, 0), unit_vectors(600, 128, 1)
    kind = density(name).fit(X)
    expected = kind.score_samples(queries)
    kind.save(tmp_path)
    on_cuda = create_density(configured(name), "cuda").restore(tmp_path)
    inputs = torch.from_numpy(queries).to("cuda")
    for scores in (on_cuda.scores(inputs), on_cuda.scores(inputs.clone().requires_grad_()).detach()):
        assert scores.device.type == "cuda"
        np.testing.assert_allclose(scores.cpu().numpy(), expected, rtol=1e-4, atol=1e-5)
