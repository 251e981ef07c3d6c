"""Fewer dimensions and weighted centres in place of a bank: against slow definitions in float64, and how far off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import logsumexp

from models.densities import KernelDensity, KernelDensityConfiguration
from models.densities.compression import LOG_WEIGHTS, METRIC, Cells
from models.densities.kde import CENTRES, FEW
from models.densities.reduction import Reduction, ReductionConfiguration
from models.densities.stream import TOLERATED, HeldEmbeddings, Survey
from tests.models.embeddings import squared_distances, unit_vectors

Array = NDArray[np.float64]


def log_mean_kernel(queries: NDArray[np.float32], bank: NDArray[np.float32], gamma: float) -> Array:
    scores: Array = (logsumexp(-gamma * squared_distances(queries, bank), axis=1) - math.log(len(bank))) / gamma
    return scores


def kde(**settings: Any) -> KernelDensity:
    return KernelDensity(KernelDensityConfiguration.model_validate(settings))


def in_clusters(count: int, dimension: int, seed: int, clusters: int = 20) -> NDArray[np.float32]:
    """Unit vectors around few directions, as the windows of an image are."""
    random = np.random.default_rng(seed)
    middles = np.random.default_rng(99).standard_normal((clusters, dimension))
    vectors = middles[random.integers(clusters, size=count)] + 0.3 * random.standard_normal((count, dimension))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


# --- fewer dimensions -------------------------------------------------------------------------------------------------


def test_pca_keeps_what_varies_most_and_the_residual_of_both_sides() -> None:
    X, Q = unit_vectors(400, 24, 0), unit_vectors(30, 24, 1)
    reduction = Reduction.train(torch.from_numpy(X), ReductionConfiguration(dimension=7), seed=0)
    bank = reduction.of_bank(torch.from_numpy(X)).numpy()
    queries, residuals = (tensor.numpy() for tensor in reduction.of_queries(torch.from_numpy(Q)))
    assert bank.shape[1] == queries.shape[1] == reduction.dimension == 7

    mean = X.astype(np.float64).mean(axis=0)
    _, _, directions = np.linalg.svd(X - mean)
    kept = directions[:6].T
    left_out = np.eye(24) - kept @ kept.T
    own, of_bank = ((Y - mean) @ left_out for Y in (Q.astype(np.float64), X.astype(np.float64)))
    np.testing.assert_allclose(residuals, np.square(own).sum(axis=1), rtol=0, atol=1e-5)
    # All of the squared distance but for twice the inner product of what was left out.
    expected = squared_distances(Q, X) + 2 * own @ of_bank.T
    np.testing.assert_allclose(squared_distances(queries, bank) + residuals[:, None], expected, rtol=0, atol=1e-5)


def test_random_directions_keep_squared_distances_on_average() -> None:
    X = unit_vectors(200, 64, 0)
    ratios = []
    for seed in range(20):
        reduction = Reduction.train(
            torch.from_numpy(X), ReductionConfiguration(method="random_projection", dimension=16), seed
        )
        projected, residuals = reduction.of_queries(torch.from_numpy(X))
        assert projected.shape == (200, 16)
        assert not residuals.any()
        torch.testing.assert_close(reduction.of_bank(torch.from_numpy(X)), projected)
        ratios.append(squared_distances(projected[:1].numpy(), projected[1:].numpy()) / squared_distances(X[:1], X[1:]))
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
    assert np.std(ratios) > 0.1  # they do differ: the directions are random


@pytest.mark.parametrize("method", ["pca", "random_projection"])
@pytest.mark.parametrize("shape", [(5, 24), (100, 6)], ids=["few embeddings", "few dimensions"])
def test_a_reduction_that_cannot_be_is_refused(method: Any, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{shape[0]} embeddings of dimension {shape[1]} cannot be reduced to 7"):
        Reduction.train(
            torch.from_numpy(unit_vectors(*shape, 0)), ReductionConfiguration(method=method, dimension=7), seed=0
        )


@pytest.mark.parametrize("mode", ["exact", "neighbours"])
def test_other_modes_can_be_reduced_too(mode: str, tmp_path: Path) -> None:
    X, Q = unit_vectors(3000, 48, 0), unit_vectors(50, 48, 1)
    settings = {"mode": mode, "neighbours": 300, "reduction": {"dimension": 40}}
    made = kde(**settings).fit(X)
    facts = made.facts()
    assert (facts["samples"], facts["held_out"], facts["bank"], facts["mode"]) == (2700, 300, 2700, mode)
    full = kde(mode=mode, neighbours=300).fit(X)
    assert facts["gamma"] == pytest.approx(full.gamma, rel=1e-9)  # of full dimension
    np.testing.assert_allclose(made.score_samples(Q), full.score_samples(Q), rtol=0, atol=0.02)
    made.save(tmp_path)
    np.testing.assert_array_equal(kde(**settings).restore(tmp_path).score_samples(Q), made.score_samples(Q))


@pytest.mark.parametrize("mode", ["exact", "neighbours"])
def test_random_directions_are_summed_as_the_bank_has_them(mode: str) -> None:
    X, more, Q = unit_vectors(900, 48, 0), unit_vectors(30, 48, 2), unit_vectors(20, 48, 1)
    reduced = {"method": "random_projection", "dimension": 16}
    made = kde(mode=mode, neighbours=900, reduction=reduced).fit(X)
    rest = X[Survey.of(HeldEmbeddings(torch.from_numpy(X)), seed=0).rest]
    for density, bank in ((made, rest), (made.extended(more), np.concatenate([rest, more]))):
        assert density.reduction is not None
        of_bank = density.reduction.of_bank(torch.from_numpy(bank)).numpy()
        queries = density.reduction.of_queries(torch.from_numpy(Q))[0].numpy()
        assert tuple(density.bank.vectors.shape) == of_bank.shape == (len(bank), 16)
        expected = np.minimum(log_mean_kernel(queries, of_bank, made.gamma), 0)
        np.testing.assert_allclose(density.score_samples(Q), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["pca", "random_projection"])
def test_no_query_of_unit_length_is_longer_than_it_may_be(method: Any) -> None:
    X = in_clusters(400, 24, 0, clusters=2)
    reduction = Reduction.train(torch.from_numpy(X), ReductionConfiguration(method=method, dimension=7), seed=0)
    kept = reduction.directions @ reduction.directions.T
    longest = torch.nn.functional.normalize(torch.stack([-reduction.mean @ kept, kept[0], reduction.directions[:, 0]]))
    lengths = reduction.of_queries(longest)[0].norm(dim=1)
    assert lengths.max() <= reduction.longest * (1 + 1e-6)
    assert lengths.max() > 0.6 * reduction.longest


# --- weighted centres -------------------------------------------------------------------------------------------------


def test_a_centre_is_its_cells_mean_and_weighs_what_the_cell_does() -> None:
    X, gamma = in_clusters(600, 5, 0), 9.0
    cells = Cells.of(torch.from_numpy(X[:200]), 12, seed=0)
    middles = np.asarray(cells._index.reconstruct_n(0, 12))
    for part in np.split(X, [100, 250]):
        cells.add(torch.from_numpy(part))
    centres, arrays = cells.compressed(gamma)

    nearest = squared_distances(X, middles).argmin(axis=1)
    of_cells = [X[nearest == cell].astype(np.float64) for cell in range(12) if (nearest == cell).any()]
    covariances = [(part - part.mean(axis=0)).T @ (part - part.mean(axis=0)) / len(part) for part in of_cells]
    within = sum(len(part) * covariance for part, covariance in zip(of_cells, covariances, strict=True)) / len(X)
    log_weights = [
        math.log(len(part))
        - np.linalg.slogdet(np.eye(5) + 2 * gamma * np.trace(covariance) / np.trace(within) * within)[1] / 2
        for part, covariance in zip(of_cells, covariances, strict=True)
    ]
    np.testing.assert_allclose(arrays[LOG_WEIGHTS].numpy(), log_weights, rtol=0, atol=1e-4)
    metric = arrays[METRIC].numpy().astype(np.float64)
    np.testing.assert_allclose(metric @ metric.T, np.linalg.inv(np.eye(5) + 2 * gamma * within), rtol=0, atol=1e-5)
    means = np.stack([part.mean(axis=0) for part in of_cells])
    np.testing.assert_allclose(centres.numpy(), means @ metric, rtol=0, atol=1e-5)


def test_one_gaussian_cell_is_summed_exactly() -> None:
    """The bank is so large that its sum is the integral, whatever the kernel's width."""
    random = np.random.default_rng(0)
    spread = np.array([0.5, 0.2, 0.05, 0.0])
    X = (0.3 + spread * random.standard_normal((200_000, 4))).astype(np.float32)
    Q = (0.3 + 2 * spread * random.standard_normal((50, 4))).astype(np.float32)
    for gamma in (0.5, 5.0):
        made = kde(mode="compressed", centres=1, reduction=None, gamma=gamma).fit(X)
        np.testing.assert_allclose(made.score_samples(Q), log_mean_kernel(Q, X, gamma), rtol=0, atol=0.02)


def test_every_embedding_a_centre_of_its_own_is_exact() -> None:
    X, Q = unit_vectors(300, 24, 0), unit_vectors(50, 24, 1)
    made = kde(mode="compressed", centres=10**6, reduction=None).fit(X)
    rest = X[Survey.of(HeldEmbeddings(torch.from_numpy(X)), seed=0).rest]
    assert made.facts()["bank"] == made.samples == len(rest) == 270
    np.testing.assert_allclose(made.score_samples(Q), log_mean_kernel(Q, rest, made.gamma), rtol=0, atol=1e-5)


def test_the_error_is_that_of_held_out_embeddings_against_the_exact_score_over_all_others() -> None:
    X = unit_vectors(4000, 24, 0, spread=0.2)
    made = kde(mode="compressed", centres=50, reduction={"dimension": 20}).fit(X)
    survey = Survey.of(HeldEmbeddings(torch.from_numpy(X)), seed=0)
    held_out, rest = survey.held_out.numpy(), X[survey.rest]
    assert len(held_out) == 400
    assert {row.tobytes() for row in held_out}.isdisjoint(row.tobytes() for row in rest)
    assert len(rest) == made.samples == 3600
    errors = np.abs(made.score_samples(held_out) - log_mean_kernel(held_out, rest, made.gamma))
    facts = made.facts()
    expected = errors.mean(), np.quantile(errors, 0.95), np.quantile(errors, 0.99), errors.max()
    names = "error_mean", TOLERATED, "error_99", "error_largest"
    assert [facts[name] for name in names] == pytest.approx(expected, rel=0, abs=1e-5)
    assert 0 < facts["error_mean"] < 0.05
    assert "compressed: 50 centres for 3600 embeddings; error on 400 held-out ones" in made.summary()


def test_more_centres_are_closer() -> None:
    X = in_clusters(6000, 16, 0)
    errors = [
        kde(mode="compressed", centres=number, reduction=None).fit(X).facts()["error_mean"] for number in (4, 40, 2000)
    ]
    assert errors[0] > errors[1] > errors[2]


# --- which of them ----------------------------------------------------------------------------------------------------


def test_auto_takes_the_fewest_centres_within_the_tolerance() -> None:
    X = in_clusters(3 * FEW, 24, 0)
    loose = kde(tolerance=0.5, reduction={"dimension": 12}).fit(X)
    assert (loose.mode, loose.facts()["bank"]) == ("compressed", CENTRES[0][0])
    error = loose.facts()[TOLERATED]
    tighter = kde(tolerance=error * 0.999, reduction=None).fit(X)
    assert tighter.mode == "exact" or tighter.facts()[TOLERATED] < error


def test_auto_is_exact_where_no_number_of_centres_is_within_it_or_there_are_few_embeddings() -> None:
    X, Q = in_clusters(FEW + 1, 24, 0), in_clusters(20, 24, 1)
    for made, bank in ((kde(tolerance=1e-9).fit(X), X), (kde().fit(X[:FEW]), X[:FEW])):
        assert (made.mode, made.facts()["bank"]) == ("exact", len(bank))
        np.testing.assert_allclose(made.score_samples(Q), log_mean_kernel(Q, bank, made.gamma), rtol=0, atol=1e-5)


def test_auto_tries_all_dimensions_where_the_usual_ones_are_too_few() -> None:
    X = in_clusters(FEW + 100, 128, 0)
    errors = [
        kde(mode="compressed", centres=400, reduction=reduction).fit(X).facts()[TOLERATED]
        for reduction in ({"dimension": 96}, None)
    ]
    assert errors[1] < errors[0]
    between = sum(errors) / 2
    made = kde(centres=400, tolerance=between).fit(X)
    assert (made.mode, made.reduction) == ("compressed", None)
    assert made.facts()[TOLERATED] == pytest.approx(errors[1])
    asked = kde(centres=400, tolerance=between, reduction={"dimension": 96}).fit(X)
    assert asked.mode == "exact"  # what was asked for is not changed


@pytest.mark.parametrize(("centres", "kept"), [(4, "exact"), (1000, "compressed")])
def test_auto_takes_what_errs_least_where_the_bank_may_not_keep_all(centres: int, kept: str) -> None:
    X = in_clusters(FEW + 100, 24, 0)
    made = kde(centres=centres, tolerance=1e-9, bank_megabytes=0.02).fit(X)  # 208 of 96 bytes
    facts = made.facts()
    assert (made.mode, facts["bank"]) == (kept, 208 if kept == "exact" else 1000)
    compressed = kde(mode="compressed", centres=centres, reduction=None).fit(X).facts()
    assert (facts[TOLERATED] < compressed[TOLERATED]) == (kept == "exact")
    assert "above the tolerance of 1e-09" in made.summary()
    survey = Survey.of(HeldEmbeddings(torch.from_numpy(X)), 0)
    assert made.samples == (208 if kept == "exact" else len(survey.rest))  # what the sum is divided by
    true = log_mean_kernel(survey.held_out.numpy(), X[survey.rest], made.gamma)
    errors = np.abs(made.score_samples(survey.held_out) - true)
    assert facts[TOLERATED] == pytest.approx(float(np.quantile(errors, 0.95)), abs=1e-5)


def test_what_cannot_be_reduced_is_refused_by_its_numbers_alone() -> None:
    with pytest.raises(ValueError, match="dimension 30 cannot be reduced to 200; take fewer or none"):
        kde(mode="compressed", reduction={"dimension": 200}).check_samples(10_000, 30)
    for mode in ("compressed", "exact"):
        with pytest.raises(ValueError, match="81 embeddings of dimension 120 cannot be reduced to 96 by pca"):
            kde(mode=mode, reduction={"dimension": 96}).check_samples(90, 120)
    kde(mode="compressed").check_samples(10_000, 30)  # the usual reduction is left out
    kde().check_samples(90, 120)  # few are summed exactly


@pytest.mark.parametrize("mode", ["auto", "exact", "compressed", "sampled", "neighbours"])
def test_what_is_not_finite_is_refused_where_gamma_is_given_too(mode: str) -> None:
    X = in_clusters(FEW + 100, 24, 0)
    X[77, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        kde(mode=mode, gamma=10.0).fit_stream(HeldEmbeddings(torch.from_numpy(X)))


@pytest.mark.parametrize("mode", ["auto", "exact", "compressed", "sampled", "neighbours"])
def test_embeddings_that_are_all_the_same_need_a_gamma_that_is_given(mode: str) -> None:
    X = np.full((FEW + 100, 24), 24**-0.5, np.float32)
    with pytest.raises(ValueError, match=r"all the same.*set gamma"):
        kde(mode=mode).fit(X)
    rounded = X.copy()
    rounded[::7, ::5] = np.nextafter(X[0, 0], np.float32(1))  # as float32 rounds what is the same
    with pytest.raises(ValueError, match=r"all the same.*set gamma"):
        kde(mode=mode).fit(rounded)
    scores = kde(mode=mode, gamma=10.0, neighbours=FEW + 100).fit(X).score_samples(np.stack([X[0], -X[0]]))
    np.testing.assert_allclose(scores, [0, -4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_parts_may_be_so_small_that_all_of_one_is_held_out(size: int) -> None:
    X = in_clusters(300, 24, 0)

    class SmallParts(HeldEmbeddings):
        def __iter__(self) -> Iterator[torch.Tensor]:
            return iter(torch.split(torch.from_numpy(X), size))

    settings = {"mode": "compressed", "centres": 40, "reduction": {"dimension": 12}}
    made = kde(**settings).fit_stream(SmallParts(torch.from_numpy(X)))
    whole = kde(**settings).fit(X)
    assert made.samples == whole.samples == 270
    np.testing.assert_allclose(made.score_samples(X), whole.score_samples(X), rtol=0, atol=1e-5)
    assert made.facts()[TOLERATED] == pytest.approx(whole.facts()[TOLERATED], abs=1e-5)


def test_an_exact_bank_has_no_more_than_it_may() -> None:
    X = unit_vectors(5000, 24, 0)
    made = kde(mode="exact", bank_megabytes=0.1).fit(X)  # 1041 of 96 bytes
    assert (len(made.bank), made.samples, made.facts()["offered"]) == (1041, 1041, 5000)
    assert "a bank of 1041 of 5000 embeddings, the 0.1 MB that bank_megabytes allows" in made.summary()
    places = {row.tobytes(): place for place, row in enumerate(X)}
    kept = [places[row.tobytes()] for row in made.bank.vectors.numpy()]
    assert len(set(kept)) == 1041
    assert np.histogram(kept, bins=5, range=(0, 5000))[0].min() > 150  # from everywhere: 208 a fifth
    other = kde(mode="exact", bank_megabytes=0.1).fit_stream(HeldEmbeddings(torch.from_numpy(X)), seed=1)
    assert not torch.equal(other.bank.vectors, made.bank.vectors)
    assert kde(mode="exact").fit(X).samples == 5000


def test_what_is_said_of_the_reduction_counts_and_old_configurations_have_none() -> None:
    assert KernelDensityConfiguration().reduction == ReductionConfiguration()
    assert KernelDensityConfiguration(mode="compressed", reduction=None).reduction is None
    assert (
        KernelDensityConfiguration.model_validate({"mode": "exact", "neighbours": 32, "gamma": None}).reduction is None
    )
    for settings in ({"tolerance": 0}, {"centres": 0}, {"reduction": {"dimension": 1}}, {"bank_megabytes": 0}):
        with pytest.raises(ValidationError):
            KernelDensityConfiguration.model_validate(settings)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_stream_that_is_not_finite_is_refused(bad: float) -> None:
    X = in_clusters(2 * FEW, 24, 0)
    X[7, 3] = bad
    for mode in ("auto", "exact"):
        with pytest.raises(ValueError, match="finite"):
            kde(mode=mode).fit_stream(HeldEmbeddings(torch.from_numpy(X)))


# --- later ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", [None, {"dimension": 12}], ids=["full", "reduced"])
def test_embeddings_that_join_become_centres_of_weight_one(reduction: Any, tmp_path: Path) -> None:
    X, more, Q = in_clusters(3000, 24, 0), unit_vectors(40, 24, 5), unit_vectors(40, 24, 6)
    before = kde(mode="compressed", centres=60, reduction=reduction).fit(X)
    after = before.extended(more)
    facts = after.facts()
    assert (facts["bank"], facts["samples"], facts["gamma"]) == (100, 2740, before.gamma)
    added = log_mean_kernel(Q, more, before.gamma) * before.gamma + math.log(40)
    known = before.score_samples(Q) * before.gamma + math.log(2700)
    expected = (np.logaddexp(added, known) - math.log(2740)) / before.gamma
    # What joins is summed in the cells' metric and with fewer dimensions too.
    np.testing.assert_allclose(after.score_samples(Q), expected, rtol=0, atol=0.05)
    assert np.abs(after.score_samples(more) - before.score_samples(more)).max() > 0.1  # it is there
    after.save(tmp_path)
    restored = KernelDensity(after.configuration).restore(tmp_path)
    assert restored.facts() == facts
    np.testing.assert_array_equal(restored.score_samples(Q), after.score_samples(Q))


@pytest.mark.parametrize("mode", ["exact", "compressed", "neighbours"])
def test_what_joins_is_known_though_it_lies_where_the_reduction_did_not_look(mode: str) -> None:
    """A new kind of window: all in dimensions that the old ones do not have."""
    X, more, Q = (np.zeros((count, 30), np.float32) for count in (3000, 50, 40))
    X[:, :20] = in_clusters(3000, 20, 0)
    more[:, 20:], Q[:, 20:] = in_clusters(50, 10, 1, clusters=1), in_clusters(40, 10, 2, clusters=1)
    made = kde(mode=mode, centres=500, neighbours=500, reduction={"dimension": 16}, gamma=10.0).fit(X)
    before, after = made.score_samples(Q), made.extended(more)
    found = after.score_samples(Q)
    exact = np.logaddexp(
        log_mean_kernel(Q, X, 10.0) * 10 + math.log(3000), log_mean_kernel(Q, more, 10.0) * 10 + math.log(50)
    )
    np.testing.assert_allclose(found, (exact - math.log(3050)) / 10, rtol=0, atol=0.05)
    assert (found - before).min() > 0.5
    # What was known scores as it did, but for its share.
    known = made.score_samples(X[:50])
    np.testing.assert_allclose(after.score_samples(X[:50]), known - math.log(2750 / 2700) / 10, rtol=0, atol=1e-4)
