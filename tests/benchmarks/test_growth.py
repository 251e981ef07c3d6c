"""The curves of growth: every mode of the kernel density is there, each point is of what it says, they are drawn."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from benchmarks import growth
from benchmarks.growth import USUAL_BANK, measure
from models.configuration import DetectorConfiguration
from models.densities.kde import Computed
from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry
from models.images import read_image
from models.scan import Scan
from models.timing import Timing

SIDE = 64
SMALL = DetectorConfiguration(geometry=ScanGeometry(image_size=SIDE), encoder=DensePatchConfiguration(width=2))


def test_every_curve_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[int, tuple[int, ...]]] = set()
    look = Scan.look

    def noted(scan: Scan, images: object) -> object:
        offered = int(scan.density.state["offered"])
        seen.add((offered, images.shape[:2]))  # type: ignore[attr-defined]
        return look(scan, images)  # type: ignore[arg-type]

    monkeypatch.setattr(Scan, "look", noted)
    sizes, batches, sides = (1100, 2200), (1, 3), (SIDE, 2 * SIDE)
    result = measure(
        tmp_path / "out",
        torch.device("cpu"),
        bank_sizes=sizes,
        batches=batches,
        sides=sides,
        configuration=SMALL,
        rounds=1,
    )
    usual = USUAL_BANK
    assert seen == {
        *((size, (1, SIDE)) for size in sizes),
        *((usual, (batch, SIDE)) for batch in batches),
        *((usual, (1, side)) for side in sides),
    }
    expected = {
        **{f"bank {mode}": sizes for mode in get_args(Computed)},
        "batch default": batches,
        "area default": tuple(side**2 for side in sides),
    }
    assert {name: tuple(map(int, curve["points"])) for name, curve in result["curves"].items()} == expected
    assert json.loads((tmp_path / "out/growth.json").read_text())["curves"] == result["curves"]
    with (tmp_path / "out/growth.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * len(expected)
    assert read_image(tmp_path / "out/growth.png").std() > 0


def test_exponent() -> None:
    """Of the last two points: what is fixed weighs less and less."""
    points = {10: Timing((1.0, 2.0)), 100: Timing((1.1, 2.2)), 200: Timing((2.2, 4.4))}
    assert growth._exponent(points) == 1
    assert growth._exponent({10: Timing((3.0,)), 100: Timing((3.0,))}) == 0
    assert growth._exponent({10: Timing((3.0,))}) is None
