"""Small good parts, and a fit of them that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.configuration import DetectorConfiguration
from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry
from training.data import open_dataset
from training.fit import (
    FitConfiguration,
    Fitted,
    fit,
)
from training.pretext import CutPasteConfiguration
from training.trainer import TrainingConfiguration

CPU = torch.device("cpu")
GEOMETRY = ScanGeometry(image_size=64)
DETECTOR = DetectorConfiguration(geometry=GEOMETRY, encoder=DensePatchConfiguration(width=2))
IMAGES = 12
HELD_OUT = 3  # a quarter
STEPS = 3


def make_configuration(*, training: dict[str, Any] | None = None, **settings: Any) -> FitConfiguration:
    schedule: dict[str, Any] = {
        "pretext": CutPasteConfiguration(head_depth=1, head_width=8),
        "steps": STEPS,
        "batch_size": 4,
        "crop_patches": 1,
        "log_steps": 1,
    }
    return FitConfiguration(
        **{
            "detector": DETECTOR,
            "training": TrainingConfiguration(**(schedule | (training or {}))),
            "bank_size": 90,
            "calibration_fraction": HELD_OUT / IMAGES,
            **settings,
        }
    )


def pixels(seed: int) -> NDArray[np.uint8]:
    """A good part of its own."""
    random = np.random.default_rng(seed)
    image: NDArray[np.uint8] = random.integers(0, 256, (GEOMETRY.image_size,) * 2 + (3,), dtype=np.uint8)
    return image


def write(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def write_parts(folder: Path) -> Path:
    """A plain folder of good images, made here."""
    for index in range(IMAGES):
        write(folder / f"{index:03d}.png", pixels(index))
    return folder


def run_fit(data: Path, folder: Path, configuration: FitConfiguration | None = None, **options: Any) -> Fitted:
    dataset = open_dataset(data, "cap", skip_broken=options.get("skip_broken", False))
    return fit(dataset, configuration or make_configuration(), device=CPU, folder=folder, **options)
