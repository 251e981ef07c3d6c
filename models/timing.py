"""Time functions against each other: in turns within one run, so that whatever else a machine does falls on all alike.

timings = interleave({"exact": lambda: exact(x), "product": lambda: x @ y}, rounds=7)
timings["exact"].milliseconds, timings["exact"].ratio(timings["product"])
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")
LEAST_RUNS = 3  # of a function that is too slow for all rounds, so that there is a median


@dataclass(frozen=True)
class Timing:
    """How long one function took, in each round that it took part in.

    Attributes:
        seconds: by round, from the first on; warm-ups left out.
    """

    seconds: tuple[float, ...]

    @property
    def milliseconds(self) -> float:
        """The median."""
        return 1000 * statistics.median(self.seconds)

    def ratio(self, other: Timing) -> float:
        """How many times as long as ``other`` it took: the median over the rounds that both took part in.

        A ratio within a round suffers less from a load that comes and goes than one of two medians does.
        """
        return statistics.median(mine / its for mine, its in zip(self.seconds, other.seconds, strict=False))

    def facts(self) -> dict[str, Any]:
        """Median, quartiles and fastest in milliseconds, and the number of runs, ready for JSON."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return {
            "milliseconds": _round(self.milliseconds),
            "spread": [_round(1000 * float(low)), _round(1000 * float(high))],
            "fastest": _round(1000 * min(self.seconds)),
            "runs": len(self.seconds),
        }


def interleave(
    functions: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    *,
    device: torch.device = CPU,
    warm_up: int = 1,
    seconds: float = math.inf,
) -> dict[str, Timing]:
    """Time several functions in turns, every other round in the opposite order.

    Args:
        functions: by name; each is called without arguments, and what it returns is dropped.
        rounds: timed runs of each.
        device: where they work; work that a GPU has not finished is waited for before and after each.
        warm_up: untimed runs of each before.
        seconds: a function whose timed runs took this long sits out the rounds that are left, after ``LEAST_RUNS``.
    """
    for function in functions.values():
        for _ in range(warm_up):
            function()
    timed = {name: partial(_time, function, device) for name, function in functions.items()}
    return turns(timed, rounds, seconds=seconds)


def turns(functions: Mapping[str, Callable[[], float]], rounds: int, *, seconds: float = math.inf) -> dict[str, Timing]:
    """``interleave`` for functions that return how many seconds they took, as one that asks another process does."""
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    taken: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    for _ in range(rounds):
        for name in order:
            if len(taken[name]) < LEAST_RUNS or sum(taken[name]) < seconds:
                taken[name].append(functions[name]())
        order.reverse()
    return {name: Timing(tuple(values)) for name, values in taken.items()}


def _time(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _round(milliseconds: float) -> float:
    """Four digits that count, for a microsecond as for a minute."""
    return float(f"{milliseconds:.4g}")
