"""The benchmark of an inspection: every stage is there, works on what it says, and the floor is counted right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.predict import measure
from models.scan import Look
from models.store import ModelStore
from tests.benchmarks.support import BANK, CATEGORY, SIDE, small_detector, write_images
from tests.cli.support import run_program

STAGES = {"decode", "place", "encode", "density", "heatmap", "summarise", "judge", "draw"}
WHOLES = {"look", "predict", "whole"}
FLOORS = {"product_float32", "product_bfloat16"}


def test_stages_and_floor(tmp_path: Path) -> None:
    detector = small_detector()
    files = [path.read_bytes() for path in write_images(tmp_path / "images", 2)]
    figures = measure(detector, files, batches=(1, 3), rounds=3)
    assert set(figures["batches"]) == {"1", "3"}
    for batch in figures["batches"].values():
        assert set(batch["timings"]) == STAGES | WHOLES | FLOORS
        assert all(timing["runs"] == 3 and timing["milliseconds"] > 0 for timing in batch["timings"].values())
        assert set(batch["ratios"]) == {f"{name}_over_{floor}" for name in ("look", "predict") for floor in FLOORS}
    # Every window against every embedding of the bank, in every dimension.
    windows, dimension = detector.geometry.grid_size**2, detector.scan.members[0].encoder.dimension
    assert figures["multiply_adds"]["density"] == windows * BANK * dimension
    # The stem alone: 4 x 4 x 3 values for each of its outputs.
    stem = (SIDE - 3) ** 2 * 4 * 4 * 3 * dimension // 15
    assert stem < figures["multiply_adds"]["encode"] < 20 * stem


def test_a_batch_is_scanned_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small_detector()
    files = [path.read_bytes() for path in write_images(tmp_path / "images", 2)]
    seen = []
    look = detector.scan.look

    def counted(images: NDArray[np.uint8]) -> Look:
        seen.append(len(images))
        return look(images)

    monkeypatch.setattr(detector.scan, "look", counted)
    measure(detector, files, batches=(5,), rounds=1)
    assert set(seen) == {5}


def test_of_a_store_by_the_program(tmp_path: Path) -> None:
    store = tmp_path / "models"
    store.mkdir()
    ModelStore(store).publish(CATEGORY, small_detector().save)
    write_images(tmp_path / "images", 1)
    own = ("--models", store, "--category", CATEGORY, "--images", tmp_path / "images")
    common = ("--repeats", "1", "--batches", "2", "--device", "cpu", "--threads", "1", "--json")
    outcome = run_program("benchmark", "predict", *own, *common)
    assert outcome.status == 0, outcome.errors
    assert outcome.result["category"] == CATEGORY
    assert "product_bfloat16" in outcome.output
    run_program("benchmark", "predict", "--encoder", "eye", "--json").assert_refused(2, "'eye'", "dense_patch")
