"""The study of densities says what an evaluation says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.density import DENSITIES, REFERENCE, report, study
from benchmarks.embedded import Embedded
from models.configuration import DetectorConfiguration
from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry
from training.data import open_dataset
from training.evaluation import evaluate
from training.fit import FitConfiguration, fit
from training.synthetic import generate
from training.trainer import TrainingConfiguration

BANK = 80  # ten of each of the eight images that are not held out


def test_it_measures_what_an_evaluation_measures(tmp_path: Path) -> None:
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

    sizes = (BANK // 2, BANK)
    lines = study(Embedded(detector, tmp_path / "data", tmp_path / "study", part=BANK), sizes)
    assert [(line["bank"], line["density"]) for line in lines] == [
        (size, title) for size in sizes for title in DENSITIES
    ]
    exact, *others = lines[len(DENSITIES) :]
    assert exact["density"] == REFERENCE
    assert (exact["image_change"], exact["pixel_change"]) == (0, 0)
    for kind in ("image", "pixel"):
        assert exact[f"{kind}_auroc"] == pytest.approx(100 * expected[f"{kind}_auroc"], abs=0.01)
    for line in others:
        assert line["pixel_auroc"] != pytest.approx(exact["pixel_auroc"], abs=0.01)
        assert line["pixel_change"] == pytest.approx(line["pixel_auroc"] - exact["pixel_auroc"], abs=0.002)
    assert len(report(lines).splitlines()) == 2 + len(lines)
