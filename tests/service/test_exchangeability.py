"""The test for drift by itself: what its stated rate means, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import norm

from service import exchangeability
from service.exchangeability import Bet, Capital, Change, NumberTest

Draw = Callable[[Random], float]
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda random: random.gauss(0, 1),
    "tied": lambda random: float(random.randrange(3)),
    "heavy": lambda random: random.paretovariate(1.1),
}


def first_alarm(test: NumberTest, numbers: list[float], level: float = 100) -> int | None:
    return next((place for place, number in enumerate(numbers) if test.observe(number) >= level), None)


@pytest.mark.parametrize("bet", exchangeability.NUMBER_BETS, ids=lambda bet: f"{bet.change}{bet.linear:+g}")
def test_every_bet_is_fair(bet: Bet) -> None:
    z = np.linspace(-20, 20, 40_001)
    pays = np.exp(bet.linear * z + bet.square * z**2 + bet.constant)
    assert trapezoid(pays * norm.pdf(z), z) == pytest.approx(1, abs=1e-9)


def test_capital_is_neither_made_nor_lost() -> None:
    """A bet that always pays what was staked leaves the capital of 1 as it is, however late its parts are staked."""
    capital = Capital([Bet(Change.OTHER, 0, 0, 0)] * 3)
    assert [capital.bet(0.01) for _ in range(1000)] == pytest.approx([1] * 1000)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_false_alarms_are_no_more_than_stated_with_20_calibration_images(name: str) -> None:
    """However often one looks: the highest evidence of the whole stream counts."""
    random, draw, streams = Random(1), DISTRIBUTIONS[name], 200
    highest = []
    for _ in range(streams):
        test = NumberTest([draw(random) for _ in range(20)], random)
        highest.append(max(test.observe(draw(random)) for _ in range(600)))
    for rate in (0.1, 0.01):
        alarms = sum(one >= 1 / rate for one in highest)
        assert alarms <= rate * streams + 3 * math.sqrt(rate * streams)


def test_ranks_against_a_fixed_calibration_would_break_the_promise() -> None:
    """Why each number joins those that the next is compared with: the same bets on plain conformal p-values of 20."""

    class Fixed(NumberTest):
        def observe(self, number: float) -> float:
            reference = list(self._kept)
            evidence = super().observe(number)
            self._kept = reference
            return evidence

    random, streams = Random(2), 60
    alarms = sum(
        first_alarm(Fixed([random.gauss(0, 1) for _ in range(20)], random), [random.gauss(0, 1) for _ in range(600)])
        is not None
        for _ in range(streams)
    )
    assert alarms > 0.1 * streams


@pytest.mark.parametrize(
    ("change", "draw"),
    [
        (Change.HIGHER, lambda random: random.gauss(1, 1)),
        (Change.LOWER, lambda random: random.gauss(-1, 1)),
        (Change.WIDER, lambda random: random.gauss(0, 2.5)),
        (Change.NARROWER, lambda random: random.gauss(0, 0.2)),
        (Change.NARROWER, lambda random: 0.1),  # a camera that stands still
    ],
    ids=["higher", "lower", "wider", "narrower", "still"],
)
def test_a_change_is_found_and_named(change: Change, draw: Draw) -> None:
    random = Random(3)
    test = NumberTest([random.gauss(0, 1) for _ in range(20)], random)
    assert first_alarm(test, [random.gauss(0, 1) for _ in range(300)]) is None
    place = first_alarm(test, [draw(random) for _ in range(300)])
    assert place is not None
    assert test.capital.change is change


def test_a_change_of_half_a_deviation_is_found_after_a_hundred_parts_or_so() -> None:
    random, delays = Random(4), []
    for _ in range(20):
        test = NumberTest([random.gauss(0, 1) for _ in range(50)], random)
        assert first_alarm(test, [random.gauss(0, 1) for _ in range(1000)]) is None
        delays.append(first_alarm(test, [random.gauss(0.5, 1) for _ in range(1000)]) or 1000)
    assert np.median(delays) < 250


def test_the_same_number_again_and_again_is_no_change() -> None:
    test = NumberTest([], Random(5))
    assert first_alarm(test, [0.0] * 5000, level=10) is None


def test_what_does_not_matter_stays_unreported() -> None:
    random = Random(6)
    test = NumberTest([random.gauss(0, 1) for _ in range(2000)], random)
    assert first_alarm(test, [random.gauss(0.05, 1) for _ in range(10_000)], level=10) is None


def test_forgetting_bounds_the_memory_and_keeps_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchangeability, "KEPT", 30)
    random, streams, alarms = Random(7), 150, 0
    for _ in range(streams):
        test = NumberTest([random.gauss(0, 1) for _ in range(20)], random)
        alarms += first_alarm(test, [random.gauss(0, 1) for _ in range(1000)], level=10) is not None
        assert len(test._kept) <= 30
    assert alarms <= 0.1 * streams + 3 * math.sqrt(0.1 * streams)


def test_who_goes_on_where_another_stood_is_no_other() -> None:
    numbers = [Random(seed).gauss(0, 1) for seed in range(200)]
    whole, first = NumberTest(numbers[:20], Random(1)), NumberTest(numbers[:20], Random(1))
    for number in numbers[20:100]:
        whole.observe(number)
        first.observe(number)
    second = NumberTest((), first._random)
    second.resume(first.kept, first.capital.count, first.capital.capitals)
    assert [second.observe(number) for number in numbers[100:]] == [whole.observe(number) for number in numbers[100:]]
    assert second.capital.count == 180
    with pytest.raises(ValueError, match="10 bets, not 9"):
        second.resume(first.kept, 80, first.capital.capitals[:-1])
