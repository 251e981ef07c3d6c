"""The service over HTTP against an in-process loop over the same bytes, decoding included.

plumbline benchmark http --json

The service and the load are processes of their own; the loop runs in this one, before and after each saturation, and
never beside it. What is claimed: at saturation the service does at least 85 % of what the loop does; at 80 % of that
load, at a regular pace as from a line, the slowest answers take at most three times what the usual ones do (beside the
loop at that pace, which shows what the machine does by itself), and at random arrivals as well (beside a queue whose
every image takes the same time, which shows what chance does by itself); at ten times its capacity every request that
is accepted is answered before its deadline, and the others get 503 with Retry-After while memory stays flat.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from heapq import heappop, heappush
from pathlib import Path
from threading import Event, Thread
from typing import Any

from benchmarks.detectors import load_active
from benchmarks.load import Load, Outcome, due_times
from benchmarks.serving import served
from models.detector import Detector
from models.images import decode_image

CLIENTS = 16  # of the closed loop: enough that the worker is never idle
USUAL, OVERLOAD = 0.8, 10.0  # times the throughput at saturation
DEADLINE_S = 10.0

_SAMPLE_S = 0.5


def measure(
    models: Path,
    category: str,
    images: list[Path],
    *,
    device: str,
    threads: int,
    seconds: float,
    rounds: int = 4,
    url: str | None = None,
) -> dict[str, Any]:
    """Measure the service, and this machine beside it.

    Args:
        models: the store that the service serves from.
        images: files that are sent, and decoded in the loop.
        seconds: of every phase; the one with random arrivals takes four times as long, for its last percent.
        rounds: how often loop and saturation take turns.
        url: a service that runs already, with the same models and threads; one is started where it is None.
    """
    detector = load_active(models, category, device)
    bodies = [path.read_bytes() for path in images]
    with _service(models, device, threads) if url is None else nullcontext(url.rstrip("/")) as service:
        route = f"{service}/v1/categories/{category}/score"
        load = Load(url=route, images=images, seconds=seconds, timeout_s=DEADLINE_S)
        loops, saturations = [_loop(detector, bodies, seconds)], []
        for _ in range(rounds):
            saturations.append(_phase(service, load.model_copy(update={"concurrency": CLIENTS})))
            loops.append(_loop(detector, bodies, seconds))
        loop, saturated = statistics.median(loops), statistics.median(one["throughput"] for one in saturations)
        usual = {"rate": USUAL * saturated}
        long = {"seconds": 4 * seconds}
        paced = _paced(detector, bodies, usual["rate"], 2 * seconds)
        at_random = load.model_copy(update={**usual, **long})
        at_usual = {
            "regular": _phase(service, at_random.model_copy(update={"arrivals": "regular"})),
            "poisson": _phase(service, at_random),
        }
        paced += _paced(detector, bodies, usual["rate"], 2 * seconds)
        overload = _phase(service, load.model_copy(update={"rate": OVERLOAD * saturated}))
    queue = _queued(list(due_times(at_random)), threads if detector.scan.abreast else 1, saturated)
    statuses = overload["statuses"]
    refused = sum(count for status, count in statuses.items() if status != "200")
    return {
        "in_process_per_s": round(loop, 3),
        "in_process_rounds": [round(one, 3) for one in loops],
        "saturation_per_s": round(saturated, 3),
        "throughput_ratio": round(saturated / loop, 3),
        "p99_over_p50_regular": at_usual["regular"]["p99_over_p50"],
        "p99_over_p50_in_process": round(_p99(paced) / statistics.median(paced), 2),
        "p99_over_p50_poisson": at_usual["poisson"]["p99_over_p50"],
        "p99_over_p50_queue": round(_p99(queue) / statistics.median(queue), 2),
        "overload_accepted_slowest_s": overload["slowest_s"],
        "overload_latest_request_s": overload["latest_request_s"],
        "overload_deadline_s": DEADLINE_S,
        "overload_refused_otherwise": refused - overload["refused_with_retry_after"],
        "overload_rss_growth": round(overload["rss_last_bytes"] / overload["rss_first_bytes"] - 1, 4),
        "saturation": saturations,
        "usual": at_usual,
        "overload": overload,
        "image_bytes": round(statistics.mean(len(body) for body in bodies)),
        "device": str(detector.scan.device),
        "threads": threads,
        "cores": os.cpu_count(),
    }


def _loop(detector: Detector, bodies: list[bytes], seconds: float) -> float:
    """Images a second that one thread decodes and scores, one after the other."""
    detector.predict([decode_image(bodies[0])])
    begun, done = time.monotonic(), 0
    while (elapsed := time.monotonic() - begun) < seconds:
        detector.predict([decode_image(bodies[done % len(bodies)])])
        done += 1
    return done / elapsed


def _paced(detector: Detector, bodies: list[bytes], rate: float, seconds: float) -> list[float]:
    """As ``_loop``, at a regular pace: how long each took from when it was due, what this machine adds by itself."""
    begun, took = time.monotonic(), []
    for number in range(max(1, round(rate * seconds))):
        due = begun + number / rate
        time.sleep(max(0.0, due - time.monotonic()))
        detector.predict([decode_image(bodies[number % len(bodies)])])
        took.append(time.monotonic() - due)
    return took


def _queued(due: list[float], servers: int, capacity: float) -> list[float]:
    """How long each takes in a queue before servers that take the same time for each, and together do ``capacity`` a
    second: what is left where nothing varies but when requests come.
    """
    free, took = [0.0] * servers, []
    for time_due in due:
        done = max(time_due, heappop(free)) + servers / capacity
        heappush(free, done)
        took.append(done - time_due)
    return took


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


def _phase(service: str, load: Load) -> dict[str, Any]:
    before = _metrics(service)
    with _watched(service) as rss:
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.load"], input=load.model_dump_json(), stdout=subprocess.PIPE, text=True
        )
    process.check_returncode()
    outcome, after = Outcome.model_validate_json(process.stdout), _metrics(service)
    took = sorted(answer.took_s for answer in outcome.answers if answer.status == 200)
    if not took:
        raise RuntimeError(f"{service} answered no request with 200")
    statuses = Counter(str(answer.status) for answer in outcome.answers)
    refused = sum(answer.status == 503 and answer.retry_after for answer in outcome.answers)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    batches, scanned = _total(grown, "plumbline_batch_images_count"), _total(grown, "plumbline_batch_images_sum")
    return {
        "requests": len(outcome.answers),
        "offered_per_s": None if load.rate is None else round(load.rate, 3),
        "throughput": round(len(took) / outcome.seconds, 3),
        "p50_s": round(statistics.median(took), 4),
        "p99_s": round(_p99(took), 4),
        "p99_over_p50": round(_p99(took) / statistics.median(took), 2),
        "slowest_s": round(took[-1], 3),
        "latest_request_s": round(max(answer.late_s for answer in outcome.answers), 3),
        "statuses": dict(statuses),
        "refused_with_retry_after": refused,
        "client_cpu_share": round(outcome.cpu_seconds / outcome.seconds, 3),
        "images_per_batch": round(scanned / batches, 2) if batches else None,
        "batches": {
            reason: round(_total(grown, "plumbline_batch_images_count", reason))
            for reason in ("full", "waited", "idle", "joined")
        },
        "rss_first_bytes": rss[0],
        "rss_last_bytes": rss[-1],
        "rss_highest_bytes": max(rss),
    }


@contextmanager
def _watched(service: str) -> Iterator[list[float]]:
    """The service's resident memory, again and again while the block runs."""
    seen, end = [_metrics(service)["process_resident_memory_bytes"]], Event()

    def watch() -> None:
        while not end.wait(_SAMPLE_S):
            seen.append(_metrics(service)["process_resident_memory_bytes"])

    thread = Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()
        seen.append(_metrics(service)["process_resident_memory_bytes"])


@contextmanager
def _service(models: Path, device: str, threads: int) -> Iterator[str]:
    """A service of its own process, as an operator starts it, that records as it does by default."""
    with served(models, device=device, threads=threads, drain_s=0) as service:
        yield service.url


def _metrics(service: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{service}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    samples = (re.fullmatch(r"(\S+) (\S+)", line) for line in text.splitlines() if not line.startswith("#"))
    return {sample[1]: float(sample[2]) for sample in samples if sample}


def _total(metrics: dict[str, float], name: str, reason: str = "") -> float:
    return sum(value for key, value in metrics.items() if key.startswith(f"{name}{{") and reason in key)
