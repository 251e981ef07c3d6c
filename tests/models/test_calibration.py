from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binom

from models.calibration import Calibration, OperatingPoint, threshold_rank
from models.prediction import Verdict

counts = st.integers(1, 400)


def calibration(image_scores: Any, map_maxima: Any = None) -> Calibration:
    image_scores = np.asarray(image_scores, np.float64)
    return Calibration(image_scores, image_scores if map_maxima is None else np.asarray(map_maxima, np.float64))


def ranked(count: int) -> Calibration:
    """Scores 1, 2, ... count: a score is its rank."""
    return calibration(np.random.default_rng(0).permutation(np.arange(1, count + 1)))


# --- p-values -------------------------------------------------------------------------------------------------------


def test_p_values_are_exactly_uniform_over_the_ranks_a_new_good_part_may_take() -> None:
    """Exchangeable scores put a new one at each of the n + 1 ranks with the same probability."""
    good = ranked(19)
    p_values = sorted(good.p_value(rank + 0.5) for rank in range(20))
    np.testing.assert_allclose(p_values, np.arange(1, 21) / 20)


def test_p_values_are_uniform_in_simulation() -> None:
    random = np.random.default_rng(0)
    draws = random.gamma(2, size=(4000, 10))  # nine to calibrate, and the tenth is new
    counted = np.bincount([round(10 * calibration(row[:9]).p_value(row[9])) for row in draws], minlength=11)[1:]
    assert counted.sum() == 4000
    # Each of the ten values has 400 of the draws, but for chance: six standard deviations.
    assert np.abs(counted - 400).max() < 6 * math.sqrt(4000 * 0.1 * 0.9)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_p_values_stay_valid_where_scores_tie(scores: list[int]) -> None:
    """P(p <= a) <= a over the n + 1 equally likely choices of the new one, whatever the ties."""
    p_values = [
        calibration(scores[:new] + scores[new + 1 :]).p_value(scores[new]) for new in range(len(scores)) if scores[1:]
    ]
    for level in p_values:
        assert np.mean([p <= level for p in p_values]) <= level + 1e-12


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=20), st.floats(-10, 10), st.floats(-10, 10))
def test_a_p_value_falls_with_the_score_and_stays_in_its_range(
    scores: list[float], first: float, second: float
) -> None:
    good = calibration(scores)
    low, high = sorted((first, second))
    assert 1 / (len(scores) + 1) <= good.p_value(high) <= good.p_value(low) <= 1
    assert good.p_value(-math.inf) == 1
    assert good.p_value(math.inf) == good.smallest_rate == 1 / (len(scores) + 1)


# --- thresholds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "rate", "rank"),
    [
        (1, 1 / 2, 1),
        (4, 1 / 5, 4),
        (20, 1 / 21, 20),
        (99, 0.01, 99),
        (150, 0.01, 150),
        (199, 0.01, 198),
        (400, 0.01, 397),
    ],
)
def test_the_threshold_at_the_default_rate(count: int, rate: float, rank: int) -> None:
    good = ranked(count)
    assert good.default_rate == pytest.approx(rate)
    assert threshold_rank(count, good.default_rate) == rank
    point = good.operating_point()
    assert (point.image_threshold, point.pixel_threshold) == (rank, rank)
    assert point.false_reject_rate == good.default_rate


@given(counts, st.floats(0.001, 0.999))
def test_the_threshold_is_the_lowest_that_keeps_the_rate(count: int, rate: float) -> None:
    assume(rate >= 1 / (count + 1))
    rank = threshold_rank(count, rate)
    # A new good part is above the k-th of n scores with the probability (n + 1 - k) / (n + 1).
    assert (count + 1 - rank) / (count + 1) <= rate + 1e-9
    assert rank == 1 or (count + 2 - rank) / (count + 1) > rate - 1e-9


@given(counts, st.data())
def test_a_rate_of_whole_images_costs_no_rank_to_rounding(count: int, data: st.DataObject) -> None:
    rejected = data.draw(st.integers(1, count))
    assert threshold_rank(count, rejected / (count + 1)) == count + 1 - rejected


@given(st.integers(1, 60), st.data())
def test_the_verdict_is_defective_exactly_where_the_p_value_is_at_most_the_rate(
    count: int, data: st.DataObject
) -> None:
    scores = data.draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    rate = data.draw(st.integers(1, count)) / (count + 1)
    good = calibration(scores)
    point = good.operating_point(rate)
    for score in np.arange(-0.5, 21, 0.5):
        assert (point.verdict(score) is Verdict.DEFECTIVE) == (good.p_value(score) <= rate + 1e-12)


def test_the_two_thresholds_come_from_their_own_scores() -> None:
    point = calibration([3, 1, 2, 4], [30, 10, 20, 40]).operating_point(0.4)
    assert (point.image_threshold, point.pixel_threshold, point.review_band) == (3, 30, None)


def test_thresholds_keep_their_rate_in_simulation() -> None:
    """The mean rate at which good parts are rejected, over many calibrations, is (n + 1 - k) / (n + 1)."""
    random = np.random.default_rng(0)
    rates = []
    for _ in range(3000):
        point = calibration(random.random(30)).operating_point(0.1)
        rates.append(1 - point.image_threshold)  # uniform scores: the share above a threshold is known
    expected = (31 - threshold_rank(30, 0.1)) / 31
    assert expected <= 0.1
    assert np.mean(rates) == pytest.approx(expected, abs=6 * float(np.std(rates)) / math.sqrt(3000))


@pytest.mark.parametrize("count", [1, 4, 20, 98])
def test_a_rate_that_the_images_cannot_vouch_for_is_refused(count: int) -> None:
    good = ranked(count)
    good.operating_point(1 / (count + 1))
    for rate in (0.99 / (count + 1), 0.0, -0.1):
        with pytest.raises(ValueError, match=f"from {count} calibration images: accepted are .* hold out more good"):
            good.operating_point(rate)
        with pytest.raises(ValueError, match="cannot be set"):
            good.rate_interval(rate)


def test_a_rate_next_to_one_has_the_lowest_score_as_its_threshold() -> None:
    assert ranked(50).operating_point(float(np.nextafter(1, 0))).image_threshold == 1


@pytest.mark.parametrize("rate", [1.0, 1.5, math.nan, math.inf, -math.inf])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"false-reject rate of {rate:g} cannot"):
        ranked(50).operating_point(rate)


# --- the interval of the true rate ----------------------------------------------------------------------------------


def test_the_interval_of_99_images_at_one_percent() -> None:
    low, high = ranked(99).rate_interval(0.01)
    assert low == pytest.approx(0.0005, abs=0.00005)
    assert high == pytest.approx(0.030, abs=0.0005)


@pytest.mark.parametrize(("count", "rate"), [(99, 0.01), (20, 1 / 21), (50, 0.1), (7, 0.5)])
def test_the_interval_leaves_five_percent_on_either_side(count: int, rate: float) -> None:
    """The true rate is above r where at least n + 1 - k of n scores fall among the r highest: a binomial."""
    low, high = ranked(count).rate_interval(rate)
    rejected = count + 1 - threshold_rank(count, rate)
    # the threshold (k-th smallest) lies below the r-quantile from the top <=> fewer than n + 1 - k scores are above it
    assert binom.cdf(rejected - 1, count, high) == pytest.approx(0.05, abs=1e-6)
    assert binom.cdf(rejected - 1, count, low) == pytest.approx(0.95, abs=1e-6)


def test_the_interval_covers_in_simulation() -> None:
    random = np.random.default_rng(0)
    low, high = ranked(40).rate_interval(0.1)
    covered = 0
    for _ in range(3000):
        covered += low <= 1 - calibration(random.random(40)).operating_point(0.1).image_threshold <= high
    assert covered / 3000 == pytest.approx(0.9, abs=6 * math.sqrt(0.9 * 0.1 / 3000))


# --- what it takes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_scores", "map_maxima", "reason"),
    [
        ([], [], "at least one good image"),
        ([1.0, 2.0], [1.0], "2 image scores and 1 map maxima"),
        ([1.0, math.nan], [1.0, 2.0], "finite"),
        ([1.0, 2.0], [1.0, math.inf], "finite"),
    ],
)
def test_scores_that_calibrate_nothing_are_refused(
    image_scores: list[float], map_maxima: list[float], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        calibration(image_scores, map_maxima)


def test_its_length_is_the_number_of_images() -> None:
    assert len(ranked(17)) == 17


# --- the operating point --------------------------------------------------------------------------------------------


def operating_point(**settings: Any) -> OperatingPoint:
    values: dict[str, Any] = {"image_threshold": 2.0, "pixel_threshold": 1.0, "false_reject_rate": 0.01}
    return OperatingPoint.model_validate(values | settings)


@pytest.mark.parametrize(
    ("score", "verdict"),
    [(-9, Verdict.GOOD), (2.0, Verdict.GOOD), (np.nextafter(2, 3), Verdict.DEFECTIVE), (9, Verdict.DEFECTIVE)],
)
def test_a_score_above_the_threshold_is_defective(score: float, verdict: Verdict) -> None:
    assert operating_point().verdict(score) is verdict


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.0, Verdict.GOOD),
        (1.5, Verdict.GOOD),
        (np.nextafter(1.5, 2), Verdict.REVIEW),
        (2.0, Verdict.REVIEW),
        (2.5, Verdict.REVIEW),
        (np.nextafter(2.5, 3), Verdict.DEFECTIVE),
    ],
)
def test_a_score_in_the_band_is_for_review(score: float, verdict: Verdict) -> None:
    assert operating_point(review_band=(1.5, 2.5)).verdict(score) is verdict


@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3))
def test_a_band_only_takes_from_the_two_sides(score: float, below: float, above: float) -> None:
    """Whatever is not for review has the verdict that it has without a band; an empty band changes nothing."""
    plain = operating_point().verdict(score)
    assert operating_point(review_band=(2 - below, 2 + above)).verdict(score) in (plain, Verdict.REVIEW)
    assert operating_point(review_band=(2, 2)).verdict(score) is plain


@pytest.mark.parametrize(
    "settings",
    [
        {"review_band": (2.1, 3)},
        {"review_band": (1, 1.9)},
        {"review_band": (3, 1)},
        {"review_band": (math.nan, 3)},
        {"false_reject_rate": 0},
        {"false_reject_rate": 1},
        {"image_threshold": math.nan},
        {"pixel_threshold": math.nan},
        {"image_treshold": 3},
    ],
    ids=str,
)
def test_an_operating_point_that_decides_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        operating_point(**settings)


def test_an_operating_point_survives_json() -> None:
    point = operating_point(image_threshold=0.1 + 0.2, review_band=(0.1, 0.7))
    assert OperatingPoint.model_validate_json(point.model_dump_json()) == point
