"""What is told of the machine, and of the memory that a call needs."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from benchmarks.machine import machine, peak_memory

MEGABYTE = 2**20


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
    assert peak_memory(lambda: torch.empty(MEGABYTE, dtype=torch.uint8, device=device), device) == MEGABYTE
    assert machine(device)["gpu"] == torch.cuda.get_device_name(device)


def test_machine() -> None:
    facts = machine()
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()
    assert (facts["torch"], facts["numpy"]) == (torch.__version__, np.__version__)
    assert facts["load"] >= 0
    assert facts["faiss_gpus"] == faiss.get_num_gpus()
    assert "gpu" not in facts


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine()["commit"] is None
