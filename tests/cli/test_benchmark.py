"""``plumbline benchmark scan``; its figures are tested in tests/benchmarks."""

from __future__ import annotations

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
    assert outcome.result["threads"] == 1
    lines = dict(line.split(maxsplit=1) for line in outcome.output.splitlines()[:-1])
    assert lines == {name: str(value) for name, value in outcome.result.items()}


@pytest.mark.parametrize("repeats", ["0", "-1", "few"])
def test_repeats_must_be_positive(run: Run, repeats: str) -> None:
    run("benchmark", "scan", "--repeats", repeats).assert_refused(2, "--repeats", repeats)
