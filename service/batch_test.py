"""Whether vectors still are like those before: batches of them, by their maximum mean discrepancy.

The squared discrepancy of Gretton et al. (JMLR 2012), with a Gaussian kernel as wide as the vectors lie apart, between
a batch and those kept from before. Its rank among the discrepancies of random batches of the same vectors is a p-value,
uniform and independent from batch to batch as long as nothing changes (service/exchangeability.py says why), so that
one can bet on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.exchangeability import Bet, Capital, Change

BATCH = 32
KEPT = 256  # vectors that a batch is compared with, at most
PERMUTATIONS = 499
_LEAST = 2  # vectors that a discrepancy can be estimated from

# A batch that differs has a small p-value, whatever differs; one cannot be less different than by chance.
BATCH_BETS = tuple(Bet.on_shift(deviations, Change.OTHER) for deviations in (1.0, 2.0, 3.0))

Floats = NDArray[np.float64]


class BatchOutcome(NamedTuple):
    """What a batch came to."""

    squared_mmd: float
    p_value: float
    kept: NDArray[np.float32]  # (k, D), what the next batch is to be compared with


class BatchTest:
    """Compares each batch of vectors with those before it, the reference included.

    Args:
        reference: (n, D) vectors known to be in order.

    Attributes:
        capital: the evidence.
        reference: vectors of the reference.
        squared_mmd: of the latest batch; None before one was full.
    """

    def __init__(self, reference: NDArray[np.float32], seed: int | None = None) -> None:
        self._random = np.random.default_rng(seed)
        self._kept = reference
        self._batch: list[NDArray[np.float32]] = []
        self.capital = Capital(BATCH_BETS)
        self.reference = len(reference)
        self.squared_mmd: float | None = None

    @property
    def kept(self) -> NDArray[np.float32]:
        """(k, D) vectors that the next batch is compared with."""
        return self._kept

    @property
    def batch(self) -> NDArray[np.float32]:
        """(b, D) vectors that wait until they are a batch; none where one is full, which is being compared."""
        waiting = self._batch if len(self._batch) < BATCH else []
        return np.array(waiting, np.float32).reshape(len(waiting), self._kept.shape[1])

    def resume(
        self,
        kept: NDArray[np.float32],
        batch: NDArray[np.float32],
        squared_mmd: float | None,
        count: int,
        capitals: Sequence[float],
    ) -> None:
        """Go on where another one stood.

        Args:
            kept: (k, D) of the other one; all else likewise.

        Raises:
            ValueError: as ``Capital.resume``; or the vectors are not of this one's length, or too many wait.
        """
        length = self._kept.shape[1]
        if kept.shape[1:] != (length,) or batch.shape[1:] != (length,) or len(batch) >= BATCH:
            raise ValueError(f"vectors of length {length} are compared, less than {BATCH} of them wait")
        self.capital.resume(count, capitals)
        self._kept, self._batch, self.squared_mmd = kept, list(batch), squared_mmd

    def add(self, vector: NDArray[np.float32]) -> Callable[[], BatchOutcome] | None:
        """Take the next vector (D,), unless a full batch waits to be settled.

        Returns:
            Where the batch is full now, the comparison, which takes time and may run on another thread.
        """
        if len(self._batch) == BATCH:
            return None
        self._batch.append(vector)
        if len(self._batch) < BATCH:
            return None
        if len(self._kept) < _LEAST:
            self._kept = np.concatenate([self._kept, self._batch])
            self._batch.clear()
            return None
        return partial(compare, self._kept, np.stack(self._batch), self._random)

    def abandon(self) -> None:
        """Forget a full batch whose comparison failed: the next one is compared with those before it."""
        self._batch.clear()

    def settle(self, outcome: BatchOutcome) -> float:
        """Take what the comparison gave; gives the evidence after it."""
        self._batch.clear()
        self._kept, self.squared_mmd = outcome.kept, outcome.squared_mmd
        return self.capital.bet(outcome.p_value)


def compare(before: NDArray[np.float32], batch: NDArray[np.float32], random: np.random.Generator) -> BatchOutcome:
    """The discrepancy between a batch (m, D) and what came before (n, D), and how rare one as large is by chance."""
    both = np.concatenate([before, batch])
    kernel = _kernel(both.astype(np.float64))
    belongs = np.zeros((1 + PERMUTATIONS, len(both)))
    belongs[0, len(before) :] = 1
    places = np.argpartition(random.random((PERMUTATIONS, len(both))), len(batch) - 1, axis=1)[:, : len(batch)]
    np.put_along_axis(belongs[1:], places, 1, axis=1)
    observed, *by_chance = _squared_mmd(kernel, belongs)
    above = sum(other > observed for other in by_chance)
    equal = 1 + sum(other == observed for other in by_chance)
    p_value = (above + equal * random.random()) / (1 + PERMUTATIONS)
    kept = both if len(both) <= KEPT else both[random.choice(len(both), KEPT, replace=False)]
    return BatchOutcome(float(observed), float(p_value), kept)


def _kernel(vectors: Floats) -> Floats:
    """(N, N) Gaussian kernel without its diagonal, with the median squared distance as its width."""
    squares = np.square(vectors).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * vectors @ vectors.T, 0)
    width = float(np.median(distances[np.triu_indices(len(vectors), 1)]))
    kernel: Floats = np.exp(-distances / width) if width > 0 else np.ones_like(distances)
    np.fill_diagonal(kernel, 0)
    return kernel


def _squared_mmd(kernel: Floats, belongs: Floats) -> Floats:
    """(P,) unbiased squared discrepancies between what belongs (P, N), 0 or 1, and what does not."""
    sums = belongs @ kernel  # (P, N)
    within = (sums * belongs).sum(axis=1)
    across = sums.sum(axis=1) - within
    rest = kernel.sum() - within - 2 * across
    batch = belongs[0].sum()
    others = len(kernel) - batch
    means = within / (batch * (batch - 1)), rest / (others * (others - 1)), across / (batch * others)
    return np.asarray(means[0] + means[1] - 2 * means[2], np.float64)
