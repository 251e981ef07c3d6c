"""Metrics against scikit-learn and against slow, obvious oracles, ties included."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from training.metrics import RankedPixels, aupro, auroc, auroc_interval, average_precision, f1_max

Maps = NDArray[np.float32]
Bools = NDArray[np.bool_]
LIMITS = (0.05, 0.3, 1.0)


@st.composite
def scored_maps(draw: st.DrawFn) -> tuple[Maps, Bools]:
    """Small maps with few distinct scores, so that ties within and across the two kinds are common."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(2, 6)))
    levels = draw(st.sampled_from([1, 3, 1000]))
    maps = draw(npst.arrays(np.int64, shape, elements=st.integers(-levels, levels)))
    masks = draw(npst.arrays(np.bool_, shape))
    masks[0, 0, 0], masks[-1, -1, -1] = True, False
    return (maps / 7).astype(np.float32), masks


@st.composite
def scored_images(draw: st.DrawFn) -> tuple[Bools, NDArray[np.float64]]:
    size = draw(st.integers(2, 30))
    scores = draw(npst.arrays(np.int64, size, elements=st.integers(-5, 5))).astype(np.float64)
    labels = draw(npst.arrays(np.bool_, size))
    labels[0], labels[-1] = True, False
    return labels, scores


def regions_of(mask: Bools) -> list[set[tuple[int, int]]]:
    """8-connected components by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        front = [left.pop()]
        region = set(front)
        while front:
            y, x = front.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            region |= near
            front += near
        regions.append(region)
    return regions


def slow_aupro(maps: Maps, masks: Bools, limit: float) -> float:
    """Every distinct threshold in turn, every region by itself."""
    regions = [(index, region) for index, mask in enumerate(masks) for region in regions_of(mask)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        found = maps >= threshold
        rate = float(found[~masks].sum() / (~masks).sum())
        overlap = float(np.mean([np.mean([found[(index, *pixel)] for pixel in region]) for index, region in regions]))
        points.append((rate, overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@settings(deadline=None)
@given(scored_maps(), st.sampled_from(LIMITS) | st.floats(0.01, 1))
def test_aupro_equals_the_loop_over_every_threshold(case: tuple[Maps, Bools], limit: float) -> None:
    assert aupro(*case, limit) == pytest.approx(slow_aupro(*case, limit), abs=1e-9)


@settings(deadline=None)
@given(scored_maps())
def test_pixel_auroc_and_ap_equal_scikit_learn(case: tuple[Maps, Bools]) -> None:
    maps, masks = case
    pixels = RankedPixels(maps, masks)
    assert pixels.auroc() == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)
    assert pixels.average_precision() == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-9)


@settings(deadline=None)
@given(scored_maps())
def test_aupro_of_one_region_up_to_one_is_the_roc_area(case: tuple[Maps, Bools]) -> None:
    maps, _ = case
    mask = np.zeros(maps.shape, dtype=bool)
    mask[0, :2, 0] = True
    pixels = RankedPixels(maps, mask)
    assert pixels.aupro(1.0) == pytest.approx(pixels.auroc(), abs=1e-9)


@settings(deadline=None)
@given(scored_maps())
def test_pixel_metrics_ignore_a_monotone_change_of_the_scores(case: tuple[Maps, Bools]) -> None:
    maps, masks = case
    before, after = RankedPixels(maps, masks), RankedPixels(8 * maps - 64, masks)
    assert before.aupro(0.3) == after.aupro(0.3)
    assert before.auroc() == after.auroc()


@settings(deadline=None)
@given(scored_maps())
def test_pixels_that_do_not_count_are_as_good_as_cut_away(case: tuple[Maps, Bools]) -> None:
    maps, masks = case
    widths = ((0, 0), (1, 2), (0, 3))
    counted = np.pad(np.ones(masks.shape, dtype=bool), widths)
    padded = RankedPixels(
        np.pad(maps, widths, constant_values=99), np.pad(masks, widths, constant_values=True), counted
    )
    bare = RankedPixels(maps, masks)
    for limit in LIMITS:
        assert padded.aupro(limit) == bare.aupro(limit)
    assert padded.average_precision() == bare.average_precision()


def test_aupro_gives_every_region_the_same_weight() -> None:
    mask = np.zeros((1, 10, 10), dtype=bool)
    mask[0, 0:6, 0:6] = True
    mask[0, 9, 9] = True
    big_found = np.where(np.arange(100).reshape(1, 10, 10) // 10 < 9, mask, False).astype(np.float32)
    assert aupro(big_found, mask, 0.3) == pytest.approx(0.5 + 0.5 * 0.3 / 2)  # then all else enters at once


def test_aupro_joins_regions_that_touch_at_a_corner() -> None:
    mask = np.zeros((1, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[0, 1, 2] = True  # one region of three pixels
    found = np.zeros((1, 4, 4), dtype=np.float32)
    found[0, 0, 0] = 1
    assert aupro(found, mask, 1.0) == pytest.approx(1 / 3 + (2 / 3) / 2)


def test_a_perfect_map_has_one_and_a_constant_map_half_the_limit() -> None:
    mask = np.zeros((2, 8, 8), dtype=bool)
    mask[0, 2:5, 2:5] = True
    for limit in LIMITS:
        assert aupro(mask.astype(np.float32), mask, limit) == pytest.approx(1)
        assert aupro(np.zeros(mask.shape, dtype=np.float32), mask, limit) == pytest.approx(limit / 2)


def test_normal_pixels_of_good_images_count_in_the_false_positive_rate() -> None:
    mask = np.zeros((1, 4, 4), dtype=bool)
    mask[0, 0, 0] = True
    maps = np.zeros((1, 4, 4), dtype=np.float32)
    maps[0, 3, 3] = 1
    alone = aupro(maps, mask, 0.3)
    with_good = aupro(np.concatenate([maps, maps * 0]), np.concatenate([mask, mask & False]), 0.3)
    assert with_good > alone


@pytest.mark.parametrize("limit", [0, -0.1, 1.01, float("nan")])
def test_a_limit_that_is_no_rate_is_refused(limit: float) -> None:
    mask = np.eye(3, dtype=bool)[None]
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        aupro(mask.astype(np.float32), mask, limit)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pixel", [(0, 0, 0), (0, 0, 1)], ids=["defective", "normal"])
def test_scores_that_are_not_finite_are_refused(value: float, pixel: tuple[int, int, int]) -> None:
    mask = np.eye(3, dtype=bool)[None]
    maps = np.zeros((1, 3, 3), dtype=np.float32)
    maps[pixel] = value
    with pytest.raises(ValueError, match="not finite"):
        RankedPixels(maps, mask)


@pytest.mark.parametrize("fill", [True, False])
def test_pixels_of_one_kind_are_refused(fill: bool) -> None:
    with pytest.raises(ValueError, match="both kinds"):
        RankedPixels(np.zeros((1, 3, 3), dtype=np.float32), np.full((1, 3, 3), fill))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        RankedPixels(np.zeros((1, 3, 3), dtype=np.float32), np.zeros((1, 3, 4), dtype=bool))
    with pytest.raises(ValueError, match="counted"):
        RankedPixels(np.zeros((1, 3, 3), dtype=np.float32), np.eye(3, dtype=bool)[None], np.ones((3, 3), dtype=bool))


@settings(deadline=None)
@given(scored_images())
def test_f1_max_equals_the_loop_over_every_threshold(case: tuple[Bools, NDArray[np.float64]]) -> None:
    labels, scores = case
    best = 0.0
    for threshold in scores:
        called = scores >= threshold
        best = max(best, 2 * float((called & labels).sum()) / float(called.sum() + labels.sum()))
    assert f1_max(labels, scores) == pytest.approx(best, abs=1e-12)


@settings(deadline=None)
@given(scored_images())
def test_auroc_counts_pairs(case: tuple[Bools, NDArray[np.float64]]) -> None:
    labels, scores = case
    pairs = np.sign(scores[labels][:, None] - scores[~labels][None, :])
    assert auroc(labels, scores) == pytest.approx(float(np.mean((pairs + 1) / 2)), abs=1e-12)


@pytest.mark.parametrize("metric", [auroc, average_precision, f1_max, auroc_interval])
@pytest.mark.parametrize("labels", [[True, True], [False, False], []])
def test_image_metrics_need_both_kinds(metric: Any, labels: list[bool]) -> None:
    with pytest.raises(ValueError, match="both good and defective"):
        metric(np.array(labels, dtype=bool), np.zeros(len(labels)))


@settings(max_examples=25, deadline=None)
@given(scored_images())
def test_auroc_interval_equals_scikit_learn_on_the_same_draws(case: tuple[Bools, NDArray[np.float64]]) -> None:
    labels, scores = case
    good, defective = scores[~labels], scores[labels]
    generator = np.random.default_rng(5)
    values = []
    for _ in range(20):
        drawn = [generator.choice(good, good.size), generator.choice(defective, defective.size)]
        values.append(roc_auc_score(np.repeat([0, 1], [good.size, defective.size]), np.concatenate(drawn)))
    expected = np.quantile(values, [0.1, 0.9])
    assert auroc_interval(labels, scores, level=0.8, resamples=20, seed=5) == pytest.approx(expected, abs=1e-12)


def test_auroc_interval_covers_the_value_is_seeded_and_narrows_with_more_images() -> None:
    generator = np.random.default_rng(3)

    def case(size: int) -> tuple[Bools, NDArray[np.float64]]:
        labels = np.arange(2 * size) % 2 == 0
        return labels, generator.standard_normal(2 * size) + labels

    few, many = case(20), case(400)
    low, high = auroc_interval(*few, resamples=200)
    assert low < auroc(*few) < high
    assert (low, high) == auroc_interval(*few, resamples=200)
    narrow = auroc_interval(*many, resamples=200)
    assert narrow[1] - narrow[0] < (high - low) / 2


def test_auroc_interval_keeps_the_number_of_each_kind() -> None:
    labels = np.array([True] + [False] * 30)  # resampling over both kinds would often draw no defective image
    scores = np.concatenate([[100.0], np.arange(30)])
    assert auroc_interval(labels, scores, resamples=200) == pytest.approx((1, 1))
