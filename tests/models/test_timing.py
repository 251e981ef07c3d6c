"""Timing in turns: what runs when, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from models.timing import LEAST_RUNS, Timing, interleave


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes only when the function returned here is called."""
    now = [0.0]
    monkeypatch.setattr("models.timing.time.perf_counter", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    return spend


def test_in_turns_after_the_warm_up() -> None:
    ran: list[str] = []
    timings = interleave({name: partial(ran.append, name) for name in "abc"}, rounds=3, warm_up=2)
    assert "".join(ran) == "aabbcc" + "abc" + "cba" + "abc"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_warm_up_does_not_count(clock: Callable[[float], None]) -> None:
    durations = iter([100.0, 1.0, 2.0, 9.0])
    timing = interleave({"one": lambda: clock(next(durations))}, rounds=3)["one"]
    assert timing.seconds == (1.0, 2.0, 9.0)
    assert timing.milliseconds == 2000.0
    assert timing.facts() == {"milliseconds": 2000.0, "spread": [1500.0, 5500.0], "fastest": 1000.0, "runs": 3}


def test_a_slow_function_sits_out(clock: Callable[[float], None]) -> None:
    functions = {"slow": lambda: clock(10), "fast": lambda: clock(0.1)}
    timings = interleave(functions, rounds=8, seconds=5)
    assert len(timings["slow"].seconds) == LEAST_RUNS
    assert len(timings["fast"].seconds) == 8


def test_ratio_is_within_rounds() -> None:
    """A load that grows falls on both alike; the ratio of the medians would be 3.6."""
    assert Timing((2, 20, 200)).ratio(Timing((1, 10))) == 2


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        interleave({}, rounds=0)


@pytest.mark.cuda
def test_on_a_gpu() -> None:
    device = torch.device("cuda")
    x = torch.rand(4096, 4096, device=device)
    timings = interleave({"large": lambda: x @ x, "small": lambda: x[:64, :64] @ x[:64, :64]}, device=device)
    assert timings["large"].ratio(timings["small"]) > 1  # not the time that a launch takes
