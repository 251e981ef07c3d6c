"""The scan benchmark: that its figures are there, belong together, and that both encoders really ran."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.scan import measure
from models.encoders import DensePatch, Encoder, ResNet18Patch
from models.geometry import ScanGeometry
from tests.cli.support import run_program

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of the dense scan's promise, in float32
PATCH = ScanGeometry().patch_size
SIDE = PATCH + 12
SECONDS = ("resnet18_patch_seconds", "dense_patch_seconds", "dense_per_window_seconds")


def check(figures: dict[str, Any], windows: int) -> None:
    assert all(figures[name] > 0 for name in SECONDS)
    low, high = figures["dense_patch_spread"]
    assert low <= figures["dense_patch_seconds"] <= high
    assert figures["speedup"] > 0
    assert 0 <= figures["max_difference"] <= TOLERANCE
    assert figures["windows"] == windows
    assert figures["machine"]["torch"] == torch.__version__


def test_figures_of_a_small_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scan.ScanGeometry", lambda: ScanGeometry(image_size=SIDE))
    runs: dict[type, list[torch.Size]] = {DensePatch: [], ResNet18Patch: []}
    forward = Encoder.forward

    def counted(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
        assert not encoder.training
        runs[type(encoder)].append(images.shape)
        return forward(encoder, images)

    monkeypatch.setattr(Encoder, "forward", counted)
    figures = measure(CPU, repeats=4)
    windows = ScanGeometry(image_size=SIDE).grid_size ** 2
    check(figures, windows)
    whole = torch.Size((1, 3, SIDE, SIDE))
    # A warm-up and the repeats, and once more for the difference.
    assert runs[ResNet18Patch] == [whole] * 5
    assert runs[DensePatch].count(whole) == 1 + 4 + 1
    assert {tuple(shape) for shape in runs[DensePatch]} == {tuple(whole), (windows, 3, PATCH, PATCH)}


def test_a_dense_scan_that_is_wrong_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scan.ScanGeometry", lambda: ScanGeometry(image_size=SIDE))
    forward = DensePatch.embeddings

    def shifted(encoder: DensePatch, images: torch.Tensor) -> torch.Tensor:
        return forward(encoder, images).roll(1, dims=3)

    monkeypatch.setattr(DensePatch, "embeddings", shifted)
    assert measure(CPU, repeats=1)["max_difference"] > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_benchmark_as_it_is_claimed() -> None:
    """One 256x256 image, in one run of the installed program."""
    outcome = run_program("benchmark", "scan", "--json", "--repeats", "1", "--device", "cpu", seconds=900)
    assert outcome.status == 0, outcome.errors
    check(outcome.result, ScanGeometry().grid_size ** 2)
    assert outcome.result["speedup"] > 5  # of about 100 on two idle cores; a floor that no load can take away
