"""What the soak says of its samples, and a short one of a real service."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import Sample, judge, soak


def samples(memory: list[int], handles: list[int]) -> list[Sample]:
    """One a second; a third of them to each third."""
    return [Sample(second, memory[second], handles[second], 9) for second in range(len(memory))]


@pytest.mark.parametrize(
    ("last", "handles", "steady"), [(1019, 50, True), (1021, 50, False), (979, 50, False), (1000, 53, False)]
)
def test_judge_compares_the_last_third_with_the_second(last: int, handles: int, steady: bool) -> None:
    verdict = judge(samples([500] * 10 + [1000] * 10 + [last] * 10, [10] * 10 + [50] * 10 + [handles] * 10))
    assert verdict["steady"] is steady
    assert verdict["memory_change"] == pytest.approx(last / 1000 - 1, abs=1e-3)
    assert verdict["more_handles"] == handles - 50


@pytest.mark.slow
def test_soak(tmp_path: Path) -> None:
    """Every kind of client does what it is for; steadiness takes longer to show."""
    result = soak(30, tmp_path)
    assert result["faults"] == {}
    assert result["alive"]
    kinds = {outcome.split(":")[0] for outcome in result["outcomes"]}
    assert kinds == {"score", "heatmap", "send_no_image", "leave", "swap"}
    assert len(result["samples"]) >= 5
