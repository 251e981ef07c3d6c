"""Time functions against each other: in turns within one run, so that whatever else a machine does falls on all alike.

timings = interleave({"exact": lambda: exact(x), "product": lambda: x @ y}, rounds=7)
timings["exact"].milliseconds, timings["exact"].ratio(timings["product"])
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

CPU = torch.device("cpu")
LEAST_RUNS = 3  # of a function that is too slow for all rounds, so that there is a median
# What a matrix product's speed depends on, and the spread of a half-precision session.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8")
PACKAGES = ("torchvision", "opencv-python", "scikit-learn", "openvino", "onnxruntime", "triton")


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


def peak_memory(function: Callable[[], object], device: torch.device = CPU) -> int | None:
    """Bytes that one call needs at its highest beyond what was held before it; the call is not timed.

    On a GPU, what torch allocated there. On a CPU the resident memory of the process, once what was freed before has
    gone back to the system; what a library keeps from a first call for the next does not show. None where the system
    does not tell.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back_freed()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far becomes what is held now
        before = _resident("VmRSS")
        function()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def machine(device: torch.device = CPU) -> dict[str, Any]:
    """What a time depends on: processor, GPU, threads, versions, commit, and the load, so ask before measuring."""
    cpu = _cpu_facts()
    facts: dict[str, Any] = {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in cpu.get("flags", "").split()],
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "faiss": faiss.__version__,
        **_versions(PACKAGES),
        "commit": _commit(),
    }
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpu_bytes": torch.cuda.get_device_properties(device).total_memory,
            "cuda": torch.version.cuda,
        }
    return facts


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


def _give_back_freed() -> None:
    """Have the C library return what it keeps of freed memory, or a call would take that and seem to need none."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024


def _cpu_facts() -> dict[str, str]:
    """The first core's lines of /proc/cpuinfo; nothing on a system without it."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Of the sources, with ``+`` where they were changed since; None outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
