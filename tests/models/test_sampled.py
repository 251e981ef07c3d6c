from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp

from models.densities import KernelDensity, KernelDensityConfiguration
from models.densities.kernel import LogKernelSum
from models.densities.sampled import SMALLEST, SampledLogKernelSum, _estimates, sample_sizes, stratified_rows
from tests.models.embeddings import squared_distances

GAMMA = 4.0
EXACT = KernelDensityConfiguration(mode="exact", gamma=GAMMA)
BANK, DIMENSION, SAMPLE = 12_000, 16, 1024


def clusters(count: int, seed: int, spread: float = 0.7) -> NDArray[np.float32]:
    """Unit vectors around 40 directions, some of which hold ten times as many as others."""
    directions = np.random.default_rng(99).standard_normal((40, DIMENSION)) + 1.5
    random = np.random.default_rng(seed)
    frequency = np.geomspace(1, 10, len(directions))
    chosen = directions[random.choice(len(directions), count, p=frequency / frequency.sum())]
    vectors = chosen + spread * random.standard_normal((count, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, np.float32)


@pytest.fixture(scope="module")
def bank() -> NDArray[np.float32]:
    return clusters(BANK, 0)


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    return np.concatenate([clusters(150, 1), clusters(50, 2, spread=1.5)])  # good ones, and ones far from most


@pytest.fixture(scope="module")
def log_sums(bank: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(logsumexp(-GAMMA * squared_distances(queries, bank), axis=1), np.float64)


def estimator(bank: NDArray[np.float32], sizes: list[int], seed: int, tolerance: float) -> SampledLogKernelSum:
    centres = torch.from_numpy(bank)
    rows = stratified_rows(centres, sizes, seed)
    return SampledLogKernelSum(centres, GAMMA, rows, tolerance, LogKernelSum(centres, GAMMA))


def density(**settings: Any) -> KernelDensity:
    return KernelDensity(KernelDensityConfiguration(mode="sampled", samples=SAMPLE, gamma=GAMMA, **settings))


# --- the estimate ---------------------------------------------------------------------------------------------------


def test_the_stated_confidence_is_met_over_many_samples(
    bank: NDArray[np.float32], queries: NDArray[np.float32], log_sums: NDArray[np.float64]
) -> None:
    """At 95 %, on average over queries and over samples that are drawn independently."""
    errors, half_widths = [], []
    for seed in range(40):
        found = estimator(bank, [SAMPLE], seed, math.inf).estimates(torch.from_numpy(queries))
        errors.append(np.abs(found.log_sums.numpy() - log_sums))
        half_widths.append(found.half_widths.numpy())
    covered = np.array(errors) <= np.array(half_widths)
    assert covered.mean() > 0.945
    # An error bar that covers because it is enormous says nothing: 1.96 standard errors would be 2.9 mean errors.
    told = np.isfinite(half_widths)
    assert np.median(np.array(half_widths)[told]) < 4 * np.mean(np.array(errors)[told])
    assert told.mean() > 0.9


def test_a_sample_is_an_unbiased_estimate_of_the_sum(
    bank: NDArray[np.float32], queries: NDArray[np.float32], log_sums: NDArray[np.float64]
) -> None:
    ratios = []
    for seed in range(40):
        sample = estimator(bank, [SAMPLE], seed, math.inf)
        ratios.append(np.exp(sample.estimates(torch.from_numpy(queries[:100])).log_sums.numpy() - log_sums[:100]))
    mean, deviation = np.mean(ratios, axis=0), np.std(ratios, axis=0, ddof=1) / math.sqrt(len(ratios))
    assert (np.abs(mean - 1) < 4.5 * deviation).all()
    assert np.mean(mean) == pytest.approx(1, abs=0.01)


def test_runs_of_alike_embeddings_err_less_than_a_sample_of_the_whole(
    bank: NDArray[np.float32], queries: NDArray[np.float32], log_sums: NDArray[np.float64]
) -> None:
    random, kernels = np.random.default_rng(0), np.exp(-GAMMA * squared_distances(queries[:150], bank))
    stratified, plain = [], []
    for seed in range(15):
        found = estimator(bank, [SAMPLE], seed, math.inf).estimates(torch.from_numpy(queries[:150]))
        stratified.append(found.log_sums.numpy() - log_sums[:150])
        drawn = kernels[:, random.choice(BANK, SAMPLE, replace=False)].mean(axis=1) * BANK
        plain.append(np.log(drawn) - log_sums[:150])
    assert np.sqrt(np.mean(np.square(stratified))) < 0.6 * np.sqrt(np.mean(np.square(plain)))


@pytest.mark.parametrize("count", [4096, 12_000, 12_001])
def test_each_run_gives_two_different_embeddings(count: int) -> None:
    centres = torch.from_numpy(clusters(count, 3))
    [rows] = stratified_rows(centres, [SAMPLE], 0)
    assert rows.shape == (2, SAMPLE // 2)
    assert len(set(rows.flatten().tolist())) == SAMPLE
    [again], [other] = stratified_rows(centres, [SAMPLE], 0), stratified_rows(centres, [SAMPLE], 1)
    assert torch.equal(rows, again)
    assert not torch.equal(rows, other)


def test_samples_grow_up_to_a_quarter_of_the_bank() -> None:
    assert sample_sizes(1000, 1023) == []
    assert sample_sizes(1000, 1024) == [256]
    assert sample_sizes(1000, 3999) == [998]
    assert sample_sizes(1000, 4000) == [1000]
    assert sample_sizes(1000, 70_000) == [1000, 4000, 16_000]


def test_the_effective_number_is_that_of_the_samples_weighted_kernels(
    queries: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = clusters(12_001, 3)  # in runs of unequal length
    [rows] = stratified_rows(torch.from_numpy(bank), [SAMPLE], 0)
    edges = np.arange(SAMPLE // 2 + 1) * len(bank) // (SAMPLE // 2)
    terms = np.exp(-GAMMA * squared_distances(queries, bank[rows.flatten()])) * np.tile(np.diff(edges) / 2, 2)
    effective = terms.sum(axis=1) ** 2 / np.square(terms).sum(axis=1)
    for threshold in np.quantile(effective, (0.2, 0.5, 0.8)):
        monkeypatch.setattr("models.densities.sampled.FEWEST_EFFECTIVE", float(threshold))
        told = estimator(bank, [SAMPLE], 0, math.inf).estimates(torch.from_numpy(queries)).half_widths.isfinite()
        apart = np.abs(effective / threshold - 1) > 1e-4  # float32 may decide the others either way
        np.testing.assert_array_equal(told.numpy()[apart], effective[apart] > threshold)


def test_a_half_width_is_of_pairs_drawn_without_replacement(queries: NDArray[np.float32]) -> None:
    bank = clusters(4801, 3)  # in runs of 9 and 10
    [rows] = stratified_rows(torch.from_numpy(bank), [SAMPLE], 0)
    lengths = np.diff(np.arange(SAMPLE // 2 + 1) * len(bank) // (SAMPLE // 2))
    first, second = (np.exp(-GAMMA * squared_distances(queries, bank[one])) for one in rows)
    total = ((first + second) * lengths / 2).sum(axis=1)
    # Of a run of L, L times the mean of two has the variance L^2 (s^2 / 2) (1 - 2 / L), and s^2 is half the square.
    variances = np.square(first - second) * lengths * (lengths - 2) / 4
    variance, fourths = variances.sum(axis=1), np.square(variances).sum(axis=1)
    relative = stats.t.ppf(0.975, variance**2 / fourths) * np.sqrt(variance) / total
    found = estimator(bank, [SAMPLE], 0, math.inf).estimates(torch.from_numpy(queries)).half_widths.numpy()
    told = np.isfinite(found)
    assert told.mean() > 0.8
    np.testing.assert_allclose(found[told], -np.log1p(-relative[told]), rtol=1e-3)


def test_a_half_width_is_students_and_told_where_enough_embeddings_carry_the_sum() -> None:
    freedoms = torch.tensor([3.0, 30.0, 30.0, math.inf])
    effective = torch.tensor([129.0, 129.0, 127.0, 129.0])
    total, variance = 5.0, torch.tensor([0.01, 0.01, 0.01, 0.0])
    fourths = torch.where(variance > 0, variance**2 / freedoms, 0)
    moments = torch.stack([torch.full((4,), total), variance, fourths, total**2 / effective]).double()
    found = _estimates(moments, torch.full((4,), -7.0))
    np.testing.assert_allclose(found.log_sums, math.log(total) - 7, rtol=1e-6)
    expected = -np.log1p(-stats.t.ppf(0.975, freedoms[:2]) * 0.1 / total)
    np.testing.assert_allclose(found.half_widths, [*expected, math.inf, 0], rtol=1e-5)


# --- more samples, then the whole sum -------------------------------------------------------------------------------


def test_a_query_beyond_the_tolerance_gets_more_samples_then_the_whole_sum(
    bank: NDArray[np.float32], queries: NDArray[np.float32], log_sums: NDArray[np.float64]
) -> None:
    Q, tolerance = torch.from_numpy(queries), 0.085
    first = estimator(bank, [SAMPLE // 4], 0, math.inf).estimates(Q).half_widths
    found = estimator(bank, [SAMPLE // 4, SAMPLE], 0, tolerance).estimates(Q)
    second = (found.half_widths > 0) & (found.half_widths != first)
    whole = found.half_widths == 0
    assert (found.half_widths <= tolerance).all()
    assert min((first <= tolerance).sum(), second.sum(), whole.sum()) > 0  # each way was taken
    np.testing.assert_allclose(found.log_sums[whole].numpy(), log_sums[whole.numpy()], rtol=0, atol=1e-4)
    sampled = ~whole.numpy()
    covered = np.abs(found.log_sums.numpy() - log_sums)[sampled] <= found.half_widths.numpy()[sampled]
    assert covered.mean() > 0.85  # one sample, whose errors go together


def test_how_a_query_is_scored_depends_on_no_other(bank: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    sample, Q = estimator(bank, [SAMPLE], 0, 0.05), torch.from_numpy(queries)
    together = sample.estimates(Q)
    for part in (slice(0, 60), slice(60, 200)):
        alone = sample.estimates(Q[part])
        torch.testing.assert_close(alone.log_sums, together.log_sums[part], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone.half_widths, together.half_widths[part], rtol=1e-3, atol=1e-4)


def test_what_a_sample_cannot_tell_is_summed_whole(bank: NDArray[np.float32]) -> None:
    """Sums that rest on one embedding or a few: of queries so far that all but the nearest underflow, or beside one."""
    far = -20 * bank[:3]
    lonely = np.concatenate([bank, 3 * np.eye(DIMENSION, dtype=np.float32)[:1]])
    Q = np.concatenate([far, lonely[-1:]])
    expected = logsumexp(-GAMMA * squared_distances(Q, lonely), axis=1)
    found = estimator(lonely, [SAMPLE], 0, math.inf).estimates(torch.from_numpy(Q))
    assert not found.half_widths.isfinite().any()
    refined = estimator(lonely, [SAMPLE], 0, 1e9).estimates(torch.from_numpy(Q))
    assert (refined.half_widths == 0).all()
    np.testing.assert_allclose(refined.log_sums.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_a_query_that_is_far_from_all_of_the_bank_is_sampled_too(bank: NDArray[np.float32]) -> None:
    """In dimensions that the bank has nothing in, where every kernel is below exp(-100)."""
    beside = np.zeros((len(bank), 1), np.float32)
    wide, Q = np.hstack([bank, beside]), np.hstack([clusters(50, 1), np.full((50, 1), 5, np.float32)])
    near = estimator(bank, [SAMPLE], 0, math.inf).estimates(torch.from_numpy(Q[:, :-1].copy()))
    found = estimator(wide, [SAMPLE], 0, math.inf).estimates(torch.from_numpy(Q))
    assert found.half_widths.isfinite().sum() == near.half_widths.isfinite().sum() > 40
    expected = logsumexp(-GAMMA * squared_distances(Q, wide), axis=1)
    assert (np.abs(found.log_sums.numpy() - expected) <= found.half_widths.numpy()).mean() > 0.85


def test_a_gradient_is_that_of_the_whole_sum(bank: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    gradients: list[torch.Tensor] = []
    for log_sum in (estimator(bank, [SAMPLE], 0, math.inf), LogKernelSum(torch.from_numpy(bank), GAMMA)):
        Q = torch.from_numpy(queries[:20]).requires_grad_()
        gradients += torch.autograd.grad(log_sum(Q).sum(), Q)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


# --- as a mode of the kernel density --------------------------------------------------------------------------------


def test_scores_come_with_their_error(bank: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    kde, exact = density(tolerance=0.012).fit(bank), KernelDensity(EXACT).fit(bank)
    Q = torch.from_numpy(queries)
    scores, half_widths = kde.scores_with_error(Q)
    np.testing.assert_array_equal(kde.score_samples(queries), scores.numpy())
    assert (half_widths <= 0.012).all()
    assert (half_widths > 0).sum() > 20
    apart = np.abs(scores.numpy() - exact.score_samples(queries))
    assert np.sqrt(np.mean(apart**2)) < 0.012
    assert apart.max() > 1e-6  # it was sampled at all
    plain, nothing = exact.scores_with_error(Q)
    np.testing.assert_array_equal(plain.numpy(), exact.score_samples(queries))
    assert not nothing.any()


def test_the_samples_are_stored_and_drawn_by_the_seed(bank: NDArray[np.float32], tmp_path: Path) -> None:
    Q = clusters(50, 5)
    kde = density(seed=4, tolerance=1.0).fit(bank)
    kde.save(tmp_path)
    restored = KernelDensity(kde.configuration).restore(tmp_path)
    np.testing.assert_array_equal(restored.score_samples(Q), kde.score_samples(Q))
    np.testing.assert_array_equal(density(seed=4, tolerance=1.0).fit(bank).score_samples(Q), kde.score_samples(Q))
    assert (density(seed=5, tolerance=1.0).fit(bank).score_samples(Q) != kde.score_samples(Q)).any()
    facts = json.loads(json.dumps(restored.facts()))
    assert (facts["mode"], facts["sampled"]) == ("sampled", [SAMPLE])
    several = KernelDensity(KernelDensityConfiguration(mode="sampled", samples=SMALLEST, gamma=GAMMA)).fit(bank)
    assert several.facts()["sampled"] == [SMALLEST, 4 * SMALLEST]  # the smallest is taken first


def test_a_bank_that_is_no_larger_than_its_samples_is_summed_whole() -> None:
    X, Q = clusters(4 * SMALLEST - 1, 0), clusters(50, 1)
    kde = density().fit(X)
    assert kde.facts()["sampled"] == []
    assert "summed whole: 256 would be over a quarter of it" in kde.summary()
    assert not kde.scores_with_error(torch.from_numpy(Q))[1].any()
    np.testing.assert_array_equal(kde.score_samples(Q), KernelDensity(EXACT).fit(X).score_samples(Q))


def test_a_bank_that_grows_is_sampled_anew(bank: NDArray[np.float32]) -> None:
    kde = density(tolerance=1e9).fit(bank)
    added = 0.7 * clusters(6000, 7)  # elsewhere: what knows nothing of them scores them low
    grown = kde.extended(added)
    scores, half_widths = grown.scores_with_error(torch.from_numpy(added[:200]))
    expected = logsumexp(-kde.gamma * squared_distances(added[:200], np.concatenate([bank, added])), axis=1)
    expected = (expected - math.log(len(bank) + len(added))) / kde.gamma
    assert (np.abs(scores.numpy() - expected) <= half_widths.numpy()).mean() > 0.85


def test_a_sampled_score_may_be_off_by_less_than_a_compressed_one_where_nothing_is_said() -> None:
    assert KernelDensityConfiguration(mode="sampled").tolerance == 0.005
    assert KernelDensityConfiguration().tolerance == 0.02


@pytest.mark.parametrize(
    "settings", [{"samples": 255}, {"tolerance": 0}, {"tolerance": math.inf}, {"seed": -1}, {"precision": "float64"}]
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        KernelDensityConfiguration.model_validate({"mode": "sampled", **settings})


@pytest.mark.cuda
def test_cuda_samples_as_the_cpu_does(bank: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    kde = density().fit(bank)
    on_cuda = KernelDensity(kde.configuration, "cuda")
    on_cuda.bank = type(kde.bank)(kde.bank._index, torch.device("cuda"))
    on_cuda._adopt(kde.state)
    np.testing.assert_allclose(on_cuda.score_samples(queries), kde.score_samples(queries), rtol=0, atol=1e-4)
