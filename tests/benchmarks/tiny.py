"""A data set and detectors that studies are tried on: small, and all but untrained."""

from __future__ import annotations

from pathlib import Path

import torch

from models.configuration import DetectorConfiguration
from models.detector import Detector
from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry
from training.data import open_dataset
from training.fit import FitConfiguration, fit
from training.synthetic import generate
from training.trainer import TrainingConfiguration

CATEGORY = "tile"
GEOMETRY = ScanGeometry(image_size=64)
FITTING = 6  # good images that are not held out
WHOLE = FITTING * GEOMETRY.grid_size**2  # windows of theirs


def make_data(folder: Path) -> Path:
    generate(folder, CATEGORY, train=8, test_good=4, test_defects=2, image_size=64)
    return folder


def make_detector(data: Path, folder: Path, width: int = 2) -> Detector:
    """Of a bank of all windows."""
    configuration = FitConfiguration(
        detector=DetectorConfiguration(geometry=GEOMETRY, encoder=DensePatchConfiguration(width=width)),
        training=TrainingConfiguration(steps=1, batch_size=2, crop_patches=1),
        bank_size=WHOLE,
    )
    return fit(open_dataset(data, CATEGORY), configuration, device=torch.device("cpu"), folder=folder).detector
