"""A soak: a service under mixed load for half an hour, whose memory and handles must not grow.

make soak, or python -m benchmarks.soak --seconds 1800 --out soak.json
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.serving import PROGRAM, Served, served
from client import Client, ImageRefused, Retries, Unavailable
from training.synthetic import generate

CATEGORY = "tile"
SAMPLE_S = 5.0
SWAP_S = 10.0
MOST_MEMORY_CHANGE = 0.02
MOST_MORE_HANDLES = 2

# A detector that is made in seconds. What it sees does not matter here.
_TRAIN = ("--width", "8", "--steps", "10", "--batch-size", "8", "--crop-patches", "1", "--bank-size", "500")


@dataclass(frozen=True)
class Sample:
    """What the process held ``seconds`` after the load began."""

    seconds: float
    resident_bytes: int
    handles: int
    threads: int


class Load:
    """Clients of every kind, each on a thread, until they are stopped.

    Attributes:
        outcomes: how often what came of it.
        faults: what must not come: an answer or a failure that no client asked for.
    """

    def __init__(self, url: str, images: Sequence[bytes]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._url = url
        self._images = images
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        kinds = (self._score, self._score, self._heatmap, self._send_no_image, self._leave, self._swap)
        self._threads = [
            threading.Thread(target=self._run, args=(kind, seed), daemon=True) for seed, kind in enumerate(kinds)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End what is under way."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, act: Callable[[Client, random.Random], str], seed: int) -> None:
        choice = random.Random(seed)
        name = act.__name__.strip("_")
        with Client(self._url, timeout_s=60, retries=Retries(attempts=1)) as client:
            while not self._stopped.is_set():
                try:
                    outcome = f"{name}: {act(client, choice)}"
                except Unavailable as error:
                    outcome = f"{name}: {error.status} {error.kind}"
                    self._stopped.wait(error.retry_after_s or 0.1)
                except Exception as error:
                    with self._lock:
                        self.faults[f"{name}: {type(error).__name__}: {error}"[:200]] += 1
                    self._stopped.wait(1)
                    continue
                with self._lock:
                    self.outcomes[outcome] += 1

    def _score(self, client: Client, choice: random.Random) -> str:
        client.score(CATEGORY, choice.choice(self._images), part=str(choice.random()))
        return "scored"

    def _heatmap(self, client: Client, choice: random.Random) -> str:
        show = choice.choice((client.heatmap, client.raw_map))
        show(CATEGORY, choice.choice(self._images))
        return "drawn"

    def _send_no_image(self, client: Client, choice: random.Random) -> str:
        image = bytearray(choice.choice(self._images))
        if choice.random() < 0.5:
            del image[choice.randrange(len(image)) :]
        for _ in range(8):
            if image:
                image[choice.randrange(len(image))] ^= 1 << choice.randrange(8)
        try:
            client.score(CATEGORY, bytes(image))
        except ImageRefused:
            return "refused"
        return "scored all the same"

    def _leave(self, client: Client, choice: random.Random) -> str:
        """Close the connection in the middle of the body, or as soon as it is sent."""
        image = choice.choice(self._images)
        head = (
            f"POST /v1/categories/{CATEGORY}/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            f"Content-Length: {len(image)}\r\n\r\n"
        )
        address = urlsplit(self._url)
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            connection.sendall(head.encode() + image[: choice.choice((0, len(image) // 2, len(image)))])
            self._stopped.wait(choice.choice((0, 0.05, 0.2)))
        self._stopped.wait(0.2)
        return "left"

    def _swap(self, client: Client, choice: random.Random) -> str:
        self._stopped.wait(SWAP_S)
        now = client.category(CATEGORY).version
        response = httpx.post(
            f"{self._url}/v1/categories/{CATEGORY}/activate", json={"version": 1 if now == 2 else 2}, timeout=60
        )
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code} {response.text}")
        return "activated"


def sample(service: Served, begun: float) -> Sample:
    """What the service holds now."""
    return Sample(round(time.monotonic() - begun, 1), service.resident_bytes(), service.handles(), service.threads())


def judge(samples: Sequence[Sample]) -> dict[str, Any]:
    """Compare the last third of a soak with the second.

    Returns:
        Medians of both, ``memory_change`` as a share of the second's, ``more_handles``, and whether it is ``steady``.
    """
    end = samples[-1].seconds
    thirds = [[s for s in samples if k * end / 3 <= s.seconds <= (k + 1) * end / 3] for k in (1, 2)]
    memory = [statistics.median(s.resident_bytes for s in third) for third in thirds]
    handles = [statistics.median(s.handles for s in third) for third in thirds]
    threads = [statistics.median(s.threads for s in third) for third in thirds]
    change = memory[1] / memory[0] - 1
    more = handles[1] - handles[0]
    return {
        "resident_bytes": memory,
        "memory_change": change,
        "handles": handles,
        "more_handles": more,
        "threads": threads,
        "steady": abs(change) <= MOST_MEMORY_CHANGE and abs(more) <= MOST_MORE_HANDLES,
    }


def soak(seconds: float, folder: Path) -> dict[str, Any]:
    """Make two versions, serve them, load the service, and watch it.

    Args:
        seconds: how long; at least 30, so that each third has samples.
        folder: where models and records go.
    """
    images = _prepare(folder)
    samples = []
    with served(folder / "artifacts", threads=1) as service:
        load = Load(service.url, images)
        begun = time.monotonic()
        load.start()
        try:
            while (left := seconds - (time.monotonic() - begun)) > 0 and service.process.poll() is None:
                time.sleep(min(SAMPLE_S, left))
                samples.append(sample(service, begun))
        finally:
            load.stop()
        alive = httpx.get(f"{service.url}/healthz").status_code == 200
    verdict = judge(samples)
    return {
        "passed": verdict["steady"] and alive and not load.faults,
        "alive": alive,
        **verdict,
        "seconds": seconds,
        "outcomes": dict(sorted(load.outcomes.items())),
        "faults": dict(load.faults),
        "machine": platform.processor() or platform.machine(),
        "samples": [asdict(one) for one in samples],
    }


def _prepare(folder: Path) -> list[bytes]:
    generate(folder / "data", CATEGORY, train=16, test_good=4, test_defects=2, image_size=256)
    for seed in ("0", "1"):
        command = [PROGRAM, "train", CATEGORY, "--data", "data", "--seed", seed, "--device", "cpu", *_TRAIN]
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    return [path.read_bytes() for path in sorted((folder / "data" / CATEGORY / "test").rglob("*.png"))]


def main() -> int:
    """Run the soak; 1 where memory or handles were not steady, or something else went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800, help="how long (default: %(default)g)")
    parser.add_argument("--out", type=Path, help="file for the result as JSON, every sample included")
    options = parser.parse_args()
    if options.seconds < 30:
        parser.error(f"--seconds {options.seconds:g}: at least 30, so that each third has samples")
    with tempfile.TemporaryDirectory() as folder:
        result = soak(options.seconds, Path(folder))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "samples"}))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
