"""The benchmark of density modes says what an evaluation says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import density as benchmark
from models.detector import DetectorConfiguration
from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry
from training.data import open_dataset
from training.evaluation import evaluate
from training.fit import FitConfiguration, fit
from training.synthetic import generate
from training.trainer import TrainingConfiguration

BANK = 80  # ten of each of the eight images that are not held out


def test_it_measures_what_an_evaluation_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(tmp_path / "data", "tile", train=10, test_good=3, test_defects=2, image_size=64)
    for path in (tmp_path / "data").rglob("*.png"):  # to wide images, so that there is padding
        Image.fromarray(np.asarray(Image.open(path))[4:60]).save(path)
    configuration = FitConfiguration(
        detector=DetectorConfiguration(
            geometry=ScanGeometry(image_size=64), encoder=DensePatchConfiguration(width=2), resize="letterbox"
        ),
        training=TrainingConfiguration(steps=1, batch_size=2, crop_patches=1),
        bank_size=BANK,
        calibration_fraction=0.2,
    )
    dataset = open_dataset(tmp_path / "data", "tile")
    detector, _ = fit(dataset, configuration, device=torch.device("cpu"), folder=tmp_path / "run")
    expected = evaluate(detector, dataset, tmp_path / "report")

    monkeypatch.setattr(benchmark, "BANK_SIZES", (BANK,))
    rows = benchmark.measure(detector, tmp_path / "data", None)
    assert [(row["mode"], row["neighbours"], row["bank"]) for row in rows] == [
        ("exact", None, BANK),
        ("neighbours", 1, BANK),
        ("neighbours", 32, BANK),
    ]
    assert rows[0]["image_auroc"] == pytest.approx(expected["image_auroc"], abs=1e-6)
    assert rows[0]["pixel_auroc"] == pytest.approx(expected["pixel_auroc"], abs=1e-4)
    assert rows[1]["pixel_auroc"] != pytest.approx(expected["pixel_auroc"], abs=1e-4)
