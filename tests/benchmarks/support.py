"""A detector so small that a benchmark of it is a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.calibration_set import calibrate
from models.configuration import DetectorConfiguration
from models.densities import create_density
from models.detector import Detector
from models.encoders import DensePatchConfiguration, create_encoder
from models.geometry import Box, ScanGeometry
from models.scan import Scan

SIDE, WIDTH, BANK = 64, 2, 100
CATEGORY = "chip"


def small_detector() -> Detector:
    """Untrained, its density fitted on noise."""
    torch.manual_seed(0)
    configuration = DetectorConfiguration(
        geometry=ScanGeometry(image_size=SIDE), encoder=DensePatchConfiguration(width=WIDTH)
    )
    encoder = create_encoder(configuration.encoder, configuration.geometry)
    scan = Scan(configuration, encoder, create_density(configuration.density), torch.device("cpu"))
    images = np.stack([noise(seed) for seed in range(6)])
    scan.density.fit(scan.embed(images[:2]).flatten(0, 2)[:BANK].numpy())
    calibration = calibrate(scan, configuration.geometry, images[2:], [Box(x=0, y=0, width=SIDE, height=SIDE)] * 4)
    return Detector(CATEGORY, scan, calibration, data_fingerprint="0" * 64)


def noise(seed: int) -> NDArray[np.uint8]:
    """An image (SIDE, SIDE, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def write_images(folder: Path, count: int) -> list[Path]:
    """As many PNG files of noise."""
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(noise(number)).save(path)
    return paths
