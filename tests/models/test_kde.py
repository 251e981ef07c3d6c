from __future__ import annotations

import math
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import save_file
from scipy.special import logsumexp
from sklearn.neighbors import KernelDensity as SklearnKernelDensity

from models.densities import KernelDensity, KernelDensityConfiguration
from models.densities.bank import Bank
from models.densities.base import DENSITY_FILE
from models.densities.kernel import CENTRE_TILE, QUERY_TILE
from models.densities.stream import PART, HeldEmbeddings
from models.memory import array_bytes
from tests.models.embeddings import spied_searches, squared_distances, unit_vectors

TOLERANCE = 1e-5
EXACT, NEIGHBOURS = "exact", "neighbours"
modes = pytest.mark.parametrize("mode", [EXACT, NEIGHBOURS])


def oracle(queries: NDArray[np.float32], bank: NDArray[np.float32], gamma: float) -> NDArray[np.float64]:
    """(1 / gamma) log of the mean kernel over the bank."""
    scores = (logsumexp(-gamma * squared_distances(queries, bank), axis=1) - math.log(len(bank))) / gamma
    return np.asarray(scores, np.float64)


def density(mode: str = EXACT, **settings: Any) -> KernelDensity:
    return KernelDensity(KernelDensityConfiguration(mode=mode, **settings))


# --- against slow and independent definitions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "bank", "dimension"),
    [
        (1, 1, 2),
        (7, 100, 16),
        (QUERY_TILE + 1, CENTRE_TILE + 37, 64),
        (33, CENTRE_TILE - 1, 512),
        (5, 2 * CENTRE_TILE, 8),
    ],
)
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_exact_mode_is_the_sum_over_the_whole_bank(queries: int, bank: int, dimension: int, spread: float) -> None:
    X, Q = unit_vectors(bank, dimension, 0, spread), unit_vectors(queries, dimension, 1, spread)
    kde = density().fit(X)
    scores = kde.score_samples(Q)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, oracle(Q, X, kde.gamma), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("gamma", [1.0, 10.0, 300.0])
def test_exact_mode_agrees_whatever_gamma_is_set(gamma: float) -> None:
    X, Q = unit_vectors(500, 32, 0), unit_vectors(60, 32, 1)
    np.testing.assert_allclose(
        density(gamma=gamma).fit(X).score_samples(Q), oracle(Q, X, gamma), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("dimension", [3, 64, 512])
def test_exact_mode_is_scikit_learns_up_to_the_kernels_constant(dimension: int) -> None:
    X, Q = unit_vectors(700, dimension, 0), unit_vectors(40, dimension, 1)
    kde = density().fit(X)
    log_density = SklearnKernelDensity(bandwidth=1 / math.sqrt(2 * kde.gamma)).fit(X).score_samples(Q)
    expected = (log_density - dimension / 2 * math.log(kde.gamma / math.pi)) / kde.gamma
    np.testing.assert_allclose(kde.score_samples(Q), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("neighbours", [1, 5, 32])
def test_neighbours_mode_is_the_sum_over_the_nearest_divided_by_the_banks_size(neighbours: int) -> None:
    X, Q = unit_vectors(300, 24, 0), unit_vectors(50, 24, 1)
    kde = density(NEIGHBOURS, neighbours=neighbours).fit(X)
    nearest = np.sort(squared_distances(Q, X), axis=1)[:, :neighbours]
    expected = (logsumexp(-kde.gamma * nearest, axis=1) - math.log(len(X))) / kde.gamma
    np.testing.assert_allclose(kde.score_samples(Q), expected, rtol=0, atol=TOLERANCE)


def test_neighbours_mode_over_all_neighbours_is_exact() -> None:
    X, Q = unit_vectors(257, 24, 0), unit_vectors(50, 24, 1)
    exact = density().fit(X)
    for neighbours in (len(X), 10 * len(X)):  # no more than there are
        every = density(NEIGHBOURS, neighbours=neighbours).fit(X)
        np.testing.assert_allclose(every.score_samples(Q), exact.score_samples(Q), rtol=0, atol=TOLERANCE)
        gradients: list[torch.Tensor] = []
        for kde in (every, exact):
            queries = torch.from_numpy(Q).requires_grad_()
            gradients += torch.autograd.grad(kde.scores(queries).sum(), queries)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=TOLERANCE)


def test_a_gradient_does_not_depend_on_how_many_differences_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kde = density(NEIGHBOURS, neighbours=5).fit(unit_vectors(60, 24, 0))
    gradients: list[torch.Tensor] = []
    for held in (2**19, 2 * 5 * 24, 1):  # all, those of two queries, and less than one query's
        monkeypatch.setattr("models.densities.bank.DIFFERENCES", held)
        queries = torch.from_numpy(unit_vectors(7, 24, 1)).requires_grad_()
        gradients += torch.autograd.grad(kde.scores(queries).sum(), queries)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=TOLERANCE)


def test_more_neighbours_never_lower_a_score_and_exact_is_the_highest() -> None:
    X, Q = unit_vectors(300, 24, 0), unit_vectors(50, 24, 1)
    scores = [density(NEIGHBOURS, neighbours=k, gamma=1).fit(X).score_samples(Q) for k in (1, 2, 8, 32, 128)]
    scores.append(density(gamma=1).fit(X).score_samples(Q))
    for fewer, more in pairwise(scores):
        assert (more > fewer).all()


# --- properties -----------------------------------------------------------------------------------------------------


@modes
def test_gamma_is_the_papers_unless_set(mode: str) -> None:
    X = unit_vectors(200, 48, 0)
    assert density(mode).fit(X).gamma == pytest.approx(10 / (48 * X.astype(np.float64).var()), rel=1e-9)
    assert density(mode, gamma=2.5).fit(X).gamma == 2.5


@modes
def test_a_stream_is_fitted_as_an_array_is(mode: str) -> None:
    X, Q = unit_vectors(2 * PART + 5, 24, 0) + 3, unit_vectors(50, 24, 1) + 3  # moments that cancel
    streamed = density(mode).fit_stream(HeldEmbeddings(torch.from_numpy(X)))
    assert streamed.gamma == pytest.approx(10 / (24 * X.astype(np.float64).var()), rel=1e-9)
    np.testing.assert_array_equal(streamed.score_samples(Q), density(mode).fit(X).score_samples(Q))


@pytest.mark.parametrize("times", [2, 3, 50])
def test_repeating_the_bank_changes_no_exact_score(times: int) -> None:
    X, Q = unit_vectors(201, 24, 0), unit_vectors(50, 24, 1)
    once, repeated = density().fit(X), density().fit(np.tile(X, (times, 1)))
    assert repeated.gamma == pytest.approx(once.gamma, rel=1e-9)
    np.testing.assert_allclose(repeated.score_samples(Q), once.score_samples(Q), rtol=0, atol=2e-6)


@modes
def test_the_order_of_the_bank_does_not_matter(mode: str) -> None:
    X, Q = unit_vectors(CENTRE_TILE + 200, 24, 0), unit_vectors(50, 24, 1)
    shuffled = np.random.default_rng(2).permutation(X)
    np.testing.assert_allclose(
        density(mode, gamma=10).fit(shuffled).score_samples(Q),
        density(mode, gamma=10).fit(X).score_samples(Q),
        atol=2e-6,
    )


@modes
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_scores_lie_between_minus_the_largest_distance_and_zero(mode: str, data: st.DataObject) -> None:
    count, dimension = data.draw(st.integers(1, 40)), data.draw(st.integers(2, 6))
    X = unit_vectors(count, dimension, data.draw(st.integers(0, 99)), data.draw(st.sampled_from([1e-3, 0.5, 5.0])))
    gamma = data.draw(st.sampled_from([0.5, 10.0, 1000.0]))
    scores = density(mode, neighbours=count, gamma=gamma).fit(X).score_samples(X)
    assert (scores <= 0).all()
    assert (scores >= -squared_distances(X, X).max() - TOLERANCE).all()


@modes
@pytest.mark.parametrize("gamma", [0.5, 10.0])
@pytest.mark.parametrize("count", [1, 7, 77])
def test_a_bank_of_one_embedding_repeated_scores_it_zero_and_never_above(mode: str, gamma: float, count: int) -> None:
    for seed in range(20):
        X = np.repeat(unit_vectors(1, 24, seed), count, axis=0)
        scores = density(mode, neighbours=count, gamma=gamma).fit(X).score_samples(X[:3])
        np.testing.assert_allclose(scores, 0, atol=2e-6)
        assert (scores <= 0).all()


@modes
def test_far_queries_keep_finite_scores_in_order(mode: str) -> None:
    """In linear space exp(-1000 * 2) is 0, and its logarithm -inf."""
    axis, *_ = np.eye(16, dtype=np.float32)
    angles = np.linspace(0.2, math.pi, 9)
    Q = np.zeros((9, 16), np.float32)
    Q[:, 0], Q[:, 1] = np.cos(angles), np.sin(angles)
    X = np.repeat(axis[None], 5, axis=0)
    scores = density(mode, neighbours=5, gamma=1000).fit(X).score_samples(Q)
    np.testing.assert_allclose(scores, 2 * np.cos(angles) - 2, rtol=0, atol=TOLERANCE)
    assert (np.diff(scores) < 0).all()


@pytest.mark.parametrize("settings", [{"mode": "linear"}, {"neighbours": 0}, {"gamma": 0}, {"gamma": -1}, {"k": 3}])
def test_a_wrong_configuration_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KernelDensityConfiguration.model_validate(settings)


# --- storage --------------------------------------------------------------------------------------------------------


@modes
def test_the_bank_is_held_once(mode: str, tmp_path: Path) -> None:
    kde = density(mode).fit(unit_vectors(50, 24, 0))
    kde.save(tmp_path)
    for held in (kde, KernelDensity(kde.configuration).restore(tmp_path)):
        held.bank.vectors[7] = 0.25
        np.testing.assert_array_equal(held.bank._index.reconstruct(7), np.full(24, 0.25, np.float32))


def test_embeddings_outlive_their_bank() -> None:
    """On the CPU they lie in the index's memory, which would be somebody else's."""
    bank = Bank.of([torch.from_numpy(unit_vectors(50, 24, 0))], 50, 24, torch.device("cpu"))
    index, part = weakref.ref(bank._index), bank.vectors[7:9]
    del bank
    assert index() is not None
    del part
    assert index() is None


def test_where_a_gpu_has_the_embeddings_the_index_is_made_from_there(tmp_path: Path) -> None:
    """For more neighbours than FAISS finds on a GPU, and to be saved; here the embeddings only lie apart from it."""
    X, Q = unit_vectors(50, 24, 0), torch.from_numpy(unit_vectors(9, 24, 1))
    bank = Bank.of([torch.from_numpy(X)], len(X), 24, torch.device("cpu"))
    expected = bank.squared_distances(Q, 7)
    bank.vectors, bank._index = bank.vectors.clone(), None
    torch.testing.assert_close(bank.squared_distances(Q, 7), expected, rtol=0, atol=0)
    bank._index = None
    bank.save(tmp_path)
    np.testing.assert_array_equal(Bank.load(tmp_path, torch.device("cpu")).vectors.numpy(), X)


@pytest.mark.cuda
def test_a_bank_on_a_gpu_is_held_there_alone(tmp_path: Path) -> None:
    X = unit_vectors(50, 24, 0)
    bank = Bank.of([torch.from_numpy(X)], len(X), 24, torch.device("cuda"))
    bank.save(tmp_path)
    loaded = Bank.load(tmp_path, torch.device("cuda"))
    assert loaded.vectors.device.type == "cuda"
    assert array_bytes(loaded) == X.nbytes
    np.testing.assert_array_equal(loaded.vectors.cpu().numpy(), X)


@pytest.mark.cuda
@modes
def test_cuda_scores_as_the_cpu_does(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = spied_searches(monkeypatch)
    X, Q = unit_vectors(CENTRE_TILE + 37, 512, 0), unit_vectors(QUERY_TILE + 1, 512, 1)
    kde = density(mode).fit(X)
    on_cuda = KernelDensity(kde.configuration, "cuda").fit(X)
    expected = kde.score_samples(Q)
    np.testing.assert_allclose(on_cuda.score_samples(Q), expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(on_cuda.score_samples(torch.from_numpy(Q).to("cuda")), expected, rtol=0, atol=TOLERANCE)
    on_cuda.save(tmp_path)
    loaded = KernelDensity(kde.configuration, "cuda").restore(tmp_path)
    np.testing.assert_allclose(loaded.score_samples(Q), expected, rtol=0, atol=TOLERANCE)
    # By FAISS on the GPU, each of the three times, where it has one: not by the CPU unnoticed.
    assert len(searches) == (3 if faiss.get_num_gpus() > 0 and mode == NEIGHBOURS else 0)


@modes
def test_a_density_that_names_no_mode_is_of_the_configurations(mode: str, tmp_path: Path) -> None:
    """Artifacts of before 1.1."""
    X, Q = unit_vectors(90, 24, 0), unit_vectors(50, 24, 1)
    kde = density(mode, neighbours=5).fit(X)
    kde.save(tmp_path)
    save_file({name: kde.state[name] for name in ("samples", "dimension", "gamma")}, tmp_path / DENSITY_FILE)
    restored = KernelDensity(kde.configuration).restore(tmp_path)
    assert restored.facts() == {"samples": 90, "dimension": 24, "gamma": kde.gamma, "mode": mode, "bank": 90}
    np.testing.assert_array_equal(restored.score_samples(Q), kde.score_samples(Q))
