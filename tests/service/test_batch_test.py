"""The test for drift of vectors by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import kstest

from service import batch_test
from service.batch_test import BATCH, BatchTest, compare
from training.mmd import squared_mmd


def vectors(random: np.random.Generator, count: int, *, moved: float = 0, dimension: int = 16) -> NDArray[np.float32]:
    found = random.normal(size=(count, dimension)) / np.sqrt(1 + np.arange(dimension))
    found[:, 0] += moved
    return found.astype(np.float32)


def feed(test: BatchTest, batch: NDArray[np.float32]) -> float:
    for vector in batch[:-1]:
        assert test.add(vector) is None
    job = test.add(batch[-1])
    assert job is not None
    assert test.add(batch[0]) is None  # the batch is not settled yet
    return test.settle(job())


def test_the_discrepancy_is_that_of_the_paper() -> None:
    random = np.random.default_rng(0)
    before, batch = vectors(random, 40), vectors(random, BATCH, moved=1)
    both = torch.from_numpy(np.concatenate([before, batch])).double()
    gamma = 1 / float(np.median(torch.nn.functional.pdist(both).square().numpy()))
    expected = squared_mmd(torch.from_numpy(batch), torch.from_numpy(before), gamma)
    assert compare(before, batch, random).squared_mmd == pytest.approx(expected, rel=1e-6)


def test_p_values_are_uniform_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_test, "PERMUTATIONS", 99)
    random = np.random.default_rng(1)
    found = [compare(vectors(random, 20), vectors(random, BATCH), random).p_value for _ in range(300)]
    assert kstest(found, "uniform").pvalue > 1e-3


def test_false_alarms_are_no_more_than_stated_with_20_calibration_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few permutations and little memory, so that many are forgotten."""
    monkeypatch.setattr(batch_test, "PERMUTATIONS", 99)
    monkeypatch.setattr(batch_test, "KEPT", 64)
    streams, warned = 60, 0
    for seed in range(streams):
        random = np.random.default_rng(seed)
        test = BatchTest(vectors(random, 20), seed)
        warned += max(feed(test, vectors(random, BATCH)) for _ in range(20)) >= 10
        assert len(test._kept) == 64
    assert warned <= 0.1 * streams + 3 * math.sqrt(0.1 * streams)


@pytest.mark.parametrize("reference", [0, 20, 75])
def test_a_change_is_found_within_a_few_batches(reference: int) -> None:
    random = np.random.default_rng(3)
    test = BatchTest(vectors(random, reference), 3)
    if not reference:
        for vector in vectors(random, BATCH):
            assert test.add(vector) is None  # nothing to compare the first batch with
    assert max(feed(test, vectors(random, BATCH)) for _ in range(3)) < 100
    assert max(feed(test, vectors(random, BATCH, moved=2)) for _ in range(4)) >= 100
    assert test.squared_mmd is not None
    assert test.squared_mmd > 0.02


def test_vectors_that_are_all_the_same_are_no_change() -> None:
    test = BatchTest(np.ones((20, 4), np.float32), 0)
    assert max(feed(test, np.ones((BATCH, 4), np.float32)) for _ in range(5)) < 100


def test_a_comparison_that_failed_does_not_end_the_test() -> None:
    random = np.random.default_rng(5)
    test = BatchTest(vectors(random, 20), 5)
    jobs = [test.add(vector) for vector in vectors(random, BATCH)]
    assert jobs[-1] is not None
    test.abandon()
    jobs = [test.add(vector) for vector in vectors(random, BATCH)]
    assert jobs[-1] is not None
    test.settle(jobs[-1]())
    assert test.capital.count == 1


def test_who_goes_on_where_another_stood_is_no_other() -> None:
    random = np.random.default_rng(6)
    first = BatchTest(vectors(random, 20), 6)
    feed(first, vectors(random, BATCH))
    waiting, rest = np.split(vectors(random, BATCH, moved=1), [10])
    for vector in waiting:
        first.add(vector)
    second = BatchTest(vectors(random, 3), 7)
    second.resume(first.kept, first.batch, first.squared_mmd, first.capital.count, first.capital.capitals)
    assert (second.squared_mmd, second.capital.evidence) == (first.squared_mmd, first.capital.evidence)
    second._random = np.random.default_rng(8)
    first._random = np.random.default_rng(8)
    assert feed(second, rest) == feed(first, rest)
    assert (second.kept == first.kept).all()


def test_a_full_batch_is_compared_and_not_handed_on() -> None:
    random = np.random.default_rng(9)
    test = BatchTest(vectors(random, 20), 9)
    jobs = [test.add(vector) for vector in vectors(random, BATCH)]
    assert jobs[-1] is not None
    assert test.batch.shape == (0, 16)
    other = BatchTest(vectors(random, 20), 9)
    for kept, batch in ((test.kept[:, :8], test.batch), (test.kept, vectors(random, BATCH))):
        with pytest.raises(ValueError, match="vectors of length 16 are compared"):
            other.resume(kept, batch, None, 0, test.capital.capitals)
