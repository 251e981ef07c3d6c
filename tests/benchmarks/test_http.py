"""The benchmark over HTTP: that its figures are there, belong together, and are of a real service under a real load."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.http import _queued, measure
from models.store import ModelStore
from tests.cli.support import run_program
from tests.service.support import CATEGORY, encode, make_detector, part


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(encode(part(seed)))
    return sorted(folder.iterdir())


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    ModelStore(folder).publish(CATEGORY, make_detector().save)
    return folder


@pytest.mark.slow
def test_figures(models: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.http.OVERLOAD", 2.0)  # ten times what a tiny detector can is a test of the client
    figures = measure(models, CATEGORY, images, device="cpu", threads=1, seconds=1, rounds=1)
    assert figures["throughput_ratio"] == pytest.approx(
        figures["saturation_per_s"] / figures["in_process_per_s"], rel=0.01
    )
    phases = [*figures["saturation"], *figures["usual"].values(), figures["overload"]]
    for phase in phases:
        assert sum(phase["statuses"].values()) == phase["requests"]
        assert set(phase["statuses"]) <= {"200", "503", "504"}
        assert phase["refused_with_retry_after"] == phase["statuses"].get("503", 0)
        assert 0 < phase["p50_s"] <= phase["p99_s"] <= phase["slowest_s"] + 1e-3
        assert phase["images_per_batch"] >= 1
        assert phase["client_cpu_share"] > 0
        assert phase["rss_highest_bytes"] >= phase["rss_last_bytes"] > 0
    assert figures["p99_over_p50_in_process"] >= 1
    assert figures["p99_over_p50_queue"] >= 1
    usual = figures["usual"]["poisson"]
    assert usual["offered_per_s"] == pytest.approx(0.8 * figures["saturation_per_s"], rel=0.01)
    assert figures["overload_accepted_slowest_s"] <= figures["overload_deadline_s"] + 1


def test_a_queue_takes_those_that_come_in_turn() -> None:
    assert _queued([0, 0, 0, 10], servers=1, capacity=0.5) == [2, 4, 6, 2]
    assert _queued([0, 0, 0, 10], servers=2, capacity=1) == [2, 2, 4, 2]


def test_half_a_store_is_refused(tmp_path: Path) -> None:
    outcome = run_program("benchmark", "http", "--json", "--models", tmp_path)
    outcome.assert_refused(2, "--models", "--images")
