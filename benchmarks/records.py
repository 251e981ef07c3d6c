"""What recording adds to an answer: one service with records and one without, asked in turn, on this machine.

python -m benchmarks.records CATEGORY IMAGE [--models artifacts] [--requests 300]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median, quantiles
from unittest.mock import patch

from service.inspection import Inspection
from service.records.sink import Records
from service.server import serving
from service.settings import load_settings


def main() -> None:
    """Print the latencies and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category")
    parser.add_argument("image", type=Path)
    parser.add_argument("--models", type=Path, default=Path("artifacts"))
    parser.add_argument("--requests", type=int, default=300, help="to each service")
    options = parser.parse_args()
    data = options.image.read_bytes()
    awaited: list[float] = []
    take = Records.take

    async def timed_take(self: Records, inspection: Inspection) -> None:
        begun = time.perf_counter()
        await take(self, inspection)
        awaited.append(1e6 * (time.perf_counter() - begun))

    with tempfile.TemporaryDirectory() as folder, patch.object(Records, "take", timed_take):
        settings = {"models": options.models, "port": 0, "log_level": "error", "threads": 1}
        without = load_settings(**settings, records="none")
        recorded = load_settings(**settings, records=folder)
        with serving(without) as first, serving(recorded) as second:
            urls = {
                name: f"{url}/v1/categories/{options.category}/score"
                for name, url in (("none", first), ("SQLite", second))
            }
            taken: dict[str, list[float]] = {name: [] for name in urls}
            for number in range(options.requests + 10):
                for name in sorted(urls, reverse=number % 2 == 1):  # neither is always asked first
                    begun = time.perf_counter()
                    _post(urls[name], data)
                    if number >= 10:
                        taken[name].append(1000 * (time.perf_counter() - begun))
    print(f"{options.image}, {len(data)} bytes, {options.requests} requests each, one at a time")
    print("| records | median ms | 99 % ms |")
    print("|---|---|---|")
    for name, times in taken.items():
        print(f"| {name} | {median(times):.2f} | {quantiles(times, n=100)[98]:.2f} |")
    differences = [b - a for a, b in zip(taken["none"], taken["SQLite"], strict=True)]
    slowest = quantiles(awaited, n=100)[98]
    print(f"\nan answer waited for its record: median {median(awaited):.0f} us, 99 % {slowest:.0f} us")
    print(f"median of the differences of neighbours in time: {median(differences):.2f} ms")


def _post(url: str, data: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "image/png"}), timeout=60) as answer:
        answer.read()


if __name__ == "__main__":
    main()
