"""What the test for drift promises and finds, by simulation: false alarms while nothing changes, and delays.

python -m benchmarks.drift [--streams 1000] [--length 5000] [--seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from random import Random
from statistics import median

from service.exchangeability import NumberTest

RATE = 0.01
DISTRIBUTIONS: dict[str, Callable[[Random], float]] = {
    "normal": lambda random: random.gauss(0, 1),
    "tied (three values)": lambda random: float(random.randrange(3)),
    "heavy-tailed": lambda random: random.paretovariate(1.1),
}
CALIBRATIONS = (20, 50, 75, 200)
SHIFTS = (0.25, 0.5, 1.0)
FOLLOWED = 2000  # parts after a change, in which it is found or counts as missed


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000, help="simulated lines for each figure")
    parser.add_argument("--length", type=int, default=5000, help="parts of a line on which nothing changes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = Random(options.seed)

    print(f"| nothing changes, 20 calibration images, {options.length} parts | warnings (10 %) | drift (1 %) |")
    print("|---|---|---|")
    for name, draw in DISTRIBUTIONS.items():
        highest = [_highest(random, draw, options.length) for _ in range(options.streams)]
        warned, alarmed = (sum(one >= level for one in highest) / options.streams for level in (0.1 / RATE, 1 / RATE))
        print(f"| {name} | {warned:.1%} | {alarmed:.1%} |", flush=True)

    print()
    print("| calibration images | good parts before | shift, deviations | found | median delay, parts |")
    print("|---|---|---|---|---|")
    for before in (0, 300, 3000):
        for calibration in CALIBRATIONS:
            for shift in SHIFTS:
                delays = [_delay(random, calibration, before, shift) for _ in range(max(1, options.streams // 5))]
                found = [delay for delay in delays if delay is not None]
                share, typical = len(found) / len(delays), f"{median(found):.0f}" if found else "-"
                print(f"| {calibration} | {before} | {shift:g} | {share:.0%} | {typical} |", flush=True)


def _highest(random: Random, draw: Callable[[Random], float], length: int) -> float:
    test = NumberTest([draw(random) for _ in range(20)], random)
    return max(test.observe(draw(random)) for _ in range(length))


def _delay(random: Random, calibration: int, before: int, shift: float) -> int | None:
    """Parts from the change to the alarm; None where none came. A line with a false alarm before is drawn again."""
    while True:
        test = NumberTest([random.gauss(0, 1) for _ in range(calibration)], random)
        if all(test.observe(random.gauss(0, 1)) < 1 / RATE for _ in range(before)):
            break
    return next((n for n in range(1, FOLLOWED + 1) if test.observe(random.gauss(shift, 1)) >= 1 / RATE), None)


if __name__ == "__main__":
    main()
