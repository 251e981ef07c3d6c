"""Timing in turns: what runs when, what is counted, and what is told of the machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.timing import LEAST_RUNS, Timing, interleave, machine, peak_memory

MEGABYTE = 2**20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes only when the function returned here is called."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: now[0])

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


def test_peak_memory_is_that_of_the_call() -> None:
    held = []

    def touch() -> None:
        held.append(np.ones(64 * MEGABYTE, np.uint8))

    peak = peak_memory(touch)
    if peak is None:
        pytest.skip("this system does not let a process reset its highest memory")
    assert 60 * MEGABYTE < peak < 200 * MEGABYTE


def test_peak_memory_of_a_call_like_one_before() -> None:
    """In pieces that the allocator keeps when they are freed, and hands out again without asking the system."""

    def touch() -> None:
        pieces = [np.ones(100_000, np.uint8) for _ in range(500)]
        barrier.append(np.ones(100_000, np.uint8))  # behind them: the heap does not shrink by itself
        del pieces

    barrier: list[object] = []
    touch()
    peak = peak_memory(touch)
    if peak is None:
        pytest.skip("this system does not let a process reset its highest memory")
    assert peak > 20_000_000


@pytest.mark.cuda
def test_on_a_gpu() -> None:
    device = torch.device("cuda")
    x = torch.rand(4096, 4096, device=device)
    timings = interleave({"large": lambda: x @ x, "small": lambda: x[:64, :64] @ x[:64, :64]}, device=device)
    assert timings["large"].ratio(timings["small"]) > 1  # not the time that a launch takes
    assert peak_memory(lambda: torch.empty(MEGABYTE, dtype=torch.uint8, device=device), device) == MEGABYTE
    assert machine(device)["gpu"] == torch.cuda.get_device_name(device)


def test_machine() -> None:
    facts = machine()
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()
    assert (facts["torch"], facts["numpy"]) == (torch.__version__, np.__version__)
    assert facts["load"] >= 0
    assert "gpu" not in facts


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine()["commit"] is None
