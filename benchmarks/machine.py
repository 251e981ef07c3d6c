"""What a benchmark says beside its times: the machine they hold for, and the memory that a call needs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from models.timing import CPU

# What a matrix product's speed depends on, and the spread of a half-precision session.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8")
PACKAGES = ("torchvision", "opencv-python", "scikit-learn", "openvino", "onnxruntime", "triton")


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
        "faiss_gpus": faiss.get_num_gpus(),
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
