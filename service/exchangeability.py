"""Tests, valid at every look, of whether what comes still is like what came before: conformal test martingales.

As long as all numbers so far are exchangeable (nothing has changed), the rank of the newest among them is uniform and
independent of earlier ranks, whatever their distribution and however few there were to begin with; ties are broken at
random (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, chapter 7). So a player who bets on
each rank at fair odds does not grow rich: by Ville's inequality a capital of 1 ever reaches 1 / rate with a probability
of at most ``rate``. The capital is the evidence against "nothing has changed".

Memory is bounded by forgetting numbers at random, the newest like any other. What is kept then still is a sample that
earlier ranks say nothing of, so ranks among it stay uniform and independent. Comparing with a fixed sample, or
forgetting the oldest, would not do.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

KEPT = 10_000
"""Numbers that the newest is compared with, at most."""

_CLOSEST = 1e-12  # of a p-value to 0 and 1, where its normal quantile is infinite
_NORMAL = NormalDist()


class Change(StrEnum):
    """How what comes differs from what came before."""

    HIGHER = "higher"
    LOWER = "lower"
    WIDER = "wider"
    NARROWER = "narrower"
    OTHER = "other"


@dataclass(frozen=True)
class Bet:
    """Pays exp(linear z + square z^2 + constant) for a rank with normal quantile z: 1 in the mean where z is normal."""

    change: Change
    linear: float
    square: float
    constant: float

    @staticmethod
    def on_shift(deviations: float, change: Change) -> Bet:
        """The likelihood ratio of a normal distribution moved by as many standard deviations."""
        return Bet(change, deviations, 0, -(deviations**2) / 2)

    @staticmethod
    def on_spread(factor: float) -> Bet:
        """The likelihood ratio of a normal distribution stretched by a factor."""
        change = Change.WIDER if factor > 1 else Change.NARROWER
        return Bet(change, 0, (1 - factor**-2) / 2, -math.log(factor))


# The bet on the smallest shift loses where the true one is below half of it: what does not matter stays unreported.
NUMBER_BETS = (
    *(Bet.on_shift(deviations, Change.HIGHER) for deviations in (0.25, 0.5, 1.0, 2.0)),
    *(Bet.on_shift(-deviations, Change.LOWER) for deviations in (0.25, 0.5, 1.0, 2.0)),
    *(Bet.on_spread(factor) for factor in (0.5, 2.0)),
)


class Capital:
    """Bets on p-values that are uniform and independent as long as nothing changes.

    The capital is spread over the bets and over the moments at which each may begin, so that a change is found whenever
    it comes: bets that begin with p-value number t have a share of ``_later(t) - _later(t + 1)``.

    Attributes:
        count: p-values so far.
    """

    def __init__(self, bets: Sequence[Bet]) -> None:
        self._bets = bets
        self._capital = [0.0] * len(bets)
        self.count = 0

    @property
    def evidence(self) -> float:
        """The capital: 1 at first; ever at 1 / rate with a probability of at most ``rate`` while nothing changes."""
        return math.fsum(self._capital) + _later(self.count + 1)

    @property
    def capitals(self) -> tuple[float, ...]:
        """Of each bet, without what is kept for later."""
        return tuple(self._capital)

    def resume(self, count: int, capitals: Sequence[float]) -> None:
        """Go on where another one with the same bets stood.

        Args:
            count: of the other one.
            capitals: likewise.

        Raises:
            ValueError: it had other bets.
        """
        if len(capitals) != len(self._bets):
            raise ValueError(f"there are {len(self._bets)} bets, not {len(capitals)}")
        self.count, self._capital = count, list(capitals)

    @property
    def change(self) -> Change:
        """The kind of change that the evidence is for."""
        return self._bets[max(range(len(self._bets)), key=self._capital.__getitem__)].change

    def bet(self, p_value: float) -> float:
        """Take the next p-value; small ones are high ranks. Gives the evidence after it."""
        self.count += 1
        z = -_NORMAL.inv_cdf(min(max(p_value, _CLOSEST), 1 - _CLOSEST))
        share = (_later(self.count) - _later(self.count + 1)) / len(self._bets)
        self._capital = [
            (capital + share) * math.exp(bet.linear * z + bet.square * z * z + bet.constant)
            for capital, bet in zip(self._capital, self._bets, strict=True)
        ]
        return self.evidence


class NumberTest:
    """Compares each number with those before it, the reference included.

    Args:
        reference: numbers known to be in order; may be few or none.
        random: breaks ties and forgets; a seeded one makes a test repeatable.

    Attributes:
        capital: the evidence.
        reference: numbers of the reference.
    """

    def __init__(self, reference: Iterable[float], random: Random | None = None) -> None:
        self._kept = sorted(reference)
        self._random = random or Random()
        self.capital = Capital(NUMBER_BETS)
        self.reference = len(self._kept)

    @property
    def kept(self) -> NDArray[np.float64]:
        """(n,) numbers that the next one is compared with, ascending."""
        return np.array(self._kept, np.float64)

    def resume(self, kept: NDArray[np.float64], count: int, capitals: Sequence[float]) -> None:
        """Go on where another one stood.

        Args:
            kept: (n,) of the other one; its count and its bets' capitals likewise.

        Raises:
            ValueError: as ``Capital.resume``.
        """
        self.capital.resume(count, capitals)
        self._kept = sorted(kept.tolist())

    def observe(self, number: float) -> float:
        """Take the next number, which must be finite; gives the evidence after it."""
        before, after = bisect_left(self._kept, number), bisect_right(self._kept, number)
        above, equal = len(self._kept) - after, after - before + 1
        p_value = (above + equal * self._random.random()) / (len(self._kept) + 1)
        self._kept.insert(before, number)
        while len(self._kept) > KEPT:
            del self._kept[self._random.randrange(len(self._kept))]
        return self.capital.bet(p_value)


def _later(number: int) -> float:
    """The share of the capital kept for changes that begin with this number or later; falls slowly, from 1 to 0."""
    return 1 / (1 + math.log(number))
