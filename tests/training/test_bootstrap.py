"""AUROCs of weighed images against metrics of images that are repeated, and the interval of a difference."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training import bootstrap
from training.bootstrap import Wins, interval, resampled
from training.metrics import RankedPixels, auroc, auroc_interval

IMAGES, SIDE = 7, 16


def random_maps(levels: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Maps that see half of what the masks of the first four images show."""
    random = np.random.default_rng(3)
    masks = np.zeros((IMAGES, SIDE, SIDE), dtype=bool)
    for number in range(4):
        masks[number, 2 : 5 + number, 3:9] = True
    maps = random.normal(size=masks.shape) + masks * random.uniform(0, 2, masks.shape)
    return (maps if levels is None else np.round(maps * levels) / levels).astype(np.float32), masks


@pytest.mark.parametrize("levels", [None, 2], ids=["distinct", "ties"])
def test_weighed_pixels_are_repeated_images(levels: int | None) -> None:
    maps, masks = random_maps(levels)
    wins = Wins.of_pixels(maps, masks)
    assert wins.auroc() == pytest.approx([RankedPixels(maps, masks).auroc()])
    counts = np.array([[2, 0, 1, 3, 0, 1, 1], [1, 1, 0, 0, 2, 2, 1]])
    repeated = [np.repeat(np.arange(IMAGES), row) for row in counts]
    expected = [RankedPixels(maps[chosen], masks[chosen]).auroc() for chosen in repeated]
    assert wins.auroc(counts.astype(np.float64)) == pytest.approx(expected)


def test_more_scores_than_are_told_apart_move_the_area_by_less_than_half_a_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "LEVELS", 20)
    maps, masks = random_maps()
    found, expected = float(Wins.of_pixels(maps, masks).auroc()[0]), RankedPixels(maps, masks).auroc()
    assert 0 < abs(found - expected) < 1 / 38


def test_pixels_that_do_not_count_are_as_good_as_cut_away() -> None:
    maps, masks = random_maps()
    counted = np.ones(masks.shape, dtype=bool)
    counted[:, :, :5] = False
    whole, cut = Wins.of_pixels(maps, masks, counted), Wins.of_pixels(maps[:, :, 5:], masks[:, :, 5:])
    np.testing.assert_array_equal(whole.pairs, cut.pairs)


def test_weighed_images_are_repeated_images() -> None:
    labels = np.array([True, False, True, False, False, True])
    scores = np.array([0.4, 0.4, 0.9, 0.1, 0.8, 0.2])
    wins = Wins.of_images(labels, scores)
    assert wins.auroc() == pytest.approx([auroc(labels, scores)])
    counts = np.array([2, 1, 0, 3, 1, 1])
    assert wins.auroc(counts[None].astype(np.float64)) == pytest.approx(
        [auroc(np.repeat(labels, counts), np.repeat(scores, counts))]
    )


def test_good_and_defective_images_are_resampled_among_themselves() -> None:
    labels = np.arange(12) < 5
    counts = resampled(labels, 50)
    assert (counts[:, labels].sum(axis=1) == 5).all()
    assert (counts[:, ~labels].sum(axis=1) == 7).all()
    assert len(np.unique(counts, axis=0)) == 50
    np.testing.assert_array_equal(counts, resampled(labels, 50))


def test_the_interval_is_that_of_the_metric() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(120) < 70
    scores = random.normal(size=120) + labels
    expected = auroc_interval(labels, scores, resamples=4000)
    found = interval(Wins.of_images(labels, scores).auroc(resampled(labels, 4000)))
    assert found == pytest.approx(expected, abs=0.01)


def test_what_two_scores_share_is_no_doubt_of_their_difference() -> None:
    random = np.random.default_rng(2)
    labels = np.arange(120) < 70
    scores = random.normal(size=120) + labels
    first, second = (Wins.of_images(labels, scores + random.normal(scale=scale, size=120)) for scale in (0, 0.05))
    counts = resampled(labels)
    low, high = interval(second.auroc(counts) - first.auroc(counts))
    assert low <= float(second.auroc()[0] - first.auroc()[0]) <= high
    alone = interval(first.auroc(counts))
    assert high - low < (alone[1] - alone[0]) / 5
