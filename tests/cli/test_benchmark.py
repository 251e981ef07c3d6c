"""``plumbline benchmark scan``; its figures are tested in tests/benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.geometry import ScanGeometry
from tests.cli.conftest import Run
from tests.cli.support import COMPUTE


def test_the_figures_are_printed_and_are_the_json_object(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = ScanGeometry(image_size=40)  # nine windows, or a test would take a minute
    monkeypatch.setattr("benchmarks.scan.ScanGeometry", lambda: geometry)
    outcome = run("benchmark", "scan", "--repeats", "1", "--json", *COMPUTE)
    assert outcome.status == 0
    assert outcome.result["windows"] == 9
    assert outcome.result["machine"]["threads"] == 1
    lines = dict(line.split(maxsplit=1) for line in outcome.output.splitlines()[:-1])
    expected = {name: str(value) for name, value in outcome.result.items()}
    expected["machine"] = ", ".join(f"{name} {value}" for name, value in outcome.result["machine"].items())
    assert lines == expected


@pytest.mark.parametrize("repeats", ["0", "-1", "few"])
def test_repeats_must_be_positive(run: Run, repeats: str) -> None:
    run("benchmark", "scan", "--repeats", repeats).assert_refused(2, "--repeats", repeats)


def test_kernel_densities_are_timed_or_their_error_bars_counted(run: Run, tmp_path: Path) -> None:
    timed = run("benchmark", "kde", "--sizes", "200", "--repeats", "1", "--json", *COMPUTE)
    assert timed.status == 0
    assert {row["embeddings"] for row in timed.result["rows"]} == {200}
    embeddings = np.random.default_rng(0).standard_normal((2500, 8)).astype(np.float32)
    np.save(tmp_path / "bank.npy", embeddings[:2000])
    np.save(tmp_path / "test.npy", embeddings[2000:].reshape(5, 100, 8))
    options = ("--study", str(tmp_path), "--draws", "1", "--samples", "256", "--sizes", "1500")
    covered = run("benchmark", "kde", *options, "--json", *COMPUTE)
    assert covered.status == 0
    assert (covered.result["embeddings"], covered.result["draws"]) == (1500, 1)
    small = run("benchmark", "kde", *options, "--sizes", "1023", *COMPUTE)
    small.assert_refused(2, "1023 embeddings", "at least 1024", "--sizes")
    run("benchmark", "kde", "--study", str(tmp_path / "none")).assert_refused(2, "bank.npy", "none")
    run("benchmark", "kde", "--furthest").assert_refused(2, "--furthest", "--study")


@pytest.mark.parametrize(("name", "option"), [("kde", "--sizes"), ("growth", "--bank-sizes")])
def test_banks_too_small_to_be_compressed_are_refused(run: Run, tmp_path: Path, name: str, option: str) -> None:
    out = tmp_path / "out"
    outcome = run("benchmark", name, option, "2000", "105", "--out", out, *COMPUTE)
    outcome.assert_refused(2, "105 embeddings", "at least 106", option)
    assert not out.exists()


def test_the_smallest_bank_that_is_accepted_can_be_measured(run: Run) -> None:
    """In all dimensions of an embedding, which are reduced."""
    assert run("benchmark", "kde", "--sizes", "106", "--repeats", "1", "--json", *COMPUTE).status == 0
