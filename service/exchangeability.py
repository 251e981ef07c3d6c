"""A test, valid at every look, of whether new numbers still are like those before: a conformal test martingale.

As long as all numbers so far are exchangeable (nothing has changed), the rank of the newest among them is uniform and
independent of earlier ranks, whatever their distribution and however few there were to begin with; ties are broken at
random (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, chapter 7). So a player who bets on
each rank at fair odds does not grow rich: by Ville's inequality a capital of 1 ever reaches 1 / rate with a probability
of at most ``rate``. The capital is the evidence against "nothing has changed".
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from statistics import NormalDist

PERIOD = 100_000
"""Numbers after which a test starts anew, which bounds its memory."""

_CLOSEST = 1e-12  # of a p-value to 0 and 1, where its normal quantile is infinite
_NORMAL = NormalDist()


class Change(StrEnum):
    """How numbers differ from those before."""

    HIGHER = "higher"
    LOWER = "lower"
    WIDER = "wider"
    NARROWER = "narrower"


@dataclass(frozen=True)
class _Bet:
    """Pays exp(linear z + square z^2 + constant) for a rank with normal quantile z: 1 in the mean where z is normal."""

    change: Change
    linear: float
    square: float
    constant: float

    @staticmethod
    def on_shift(deviations: float) -> _Bet:
        """The likelihood ratio of a normal distribution moved by as many standard deviations."""
        change = Change.HIGHER if deviations > 0 else Change.LOWER
        return _Bet(change, deviations, 0, -(deviations**2) / 2)

    @staticmethod
    def on_spread(factor: float) -> _Bet:
        """The likelihood ratio of a normal distribution stretched by a factor."""
        change = Change.WIDER if factor > 1 else Change.NARROWER
        return _Bet(change, 0, (1 - factor**-2) / 2, -math.log(factor))


# The bet on the smallest shift loses where the true one is below half of it: what does not matter stays unreported.
_BETS = (
    *(_Bet.on_shift(sign * deviations) for deviations in (0.25, 0.5, 1.0, 2.0) for sign in (1, -1)),
    *(_Bet.on_spread(factor) for factor in (0.5, 2.0)),
)


class ExchangeabilityTest:
    """Compares each number with all before it, the reference included.

    The capital is spread over the bets and over the moments at which each may begin, so that a change is found whenever
    it comes: a bet that begins with number t has a share of ``_later(t) - _later(t + 1)``, all bets together.

    Args:
        reference: numbers known to be in order; may be few or none.
        random: breaks ties; a seeded one makes a test repeatable.

    Attributes:
        count: numbers since it began.
    """

    def __init__(self, reference: Iterable[float], random: Random | None = None) -> None:
        self._reference = sorted(reference)
        self._random = random or Random()
        self._seen: list[float]
        self._capital: list[float]
        self._begin()

    @property
    def reference(self) -> int:
        """Numbers of the reference."""
        return len(self._reference)

    @property
    def evidence(self) -> float:
        """The capital: 1 at first; ever at 1 / rate with a probability of at most ``rate`` while nothing changes."""
        return math.fsum(self._capital) + _later(self.count + 1)

    @property
    def change(self) -> Change:
        """The kind of change that the evidence is for."""
        return _BETS[max(range(len(_BETS)), key=self._capital.__getitem__)].change

    def observe(self, number: float) -> float:
        """Take the next number, which must be finite; gives the evidence after it."""
        if self.count == PERIOD:
            self._begin()
        before, after = bisect_left(self._seen, number), bisect_right(self._seen, number)
        above, equal = len(self._seen) - after, after - before + 1
        p_value = (above + equal * self._random.random()) / (len(self._seen) + 1)
        self._seen.insert(before, number)
        self.count += 1
        z = -_NORMAL.inv_cdf(min(max(p_value, _CLOSEST), 1 - _CLOSEST))
        share = (_later(self.count) - _later(self.count + 1)) / len(_BETS)
        self._capital = [
            (capital + share) * math.exp(bet.linear * z + bet.square * z * z + bet.constant)
            for capital, bet in zip(self._capital, _BETS, strict=True)
        ]
        return self.evidence

    def _begin(self) -> None:
        self.count = 0
        self._seen = list(self._reference)
        self._capital = [0.0] * len(_BETS)


def _later(number: int) -> float:
    """The share of the capital kept for changes that begin with this number or later; falls slowly, from 1 to 0."""
    return 1 / (1 + math.log(number))
