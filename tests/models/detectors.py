"""Small detectors of random plates, for the tests of what a detector decides."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.calibration import OperatingPoint
from models.calibration_set import CalibrationSet, calibrate
from models.configuration import DetectorConfiguration
from models.densities import create_density
from models.detector import Detector
from models.encoders import DensePatchConfiguration, create_encoder
from models.geometry import Box, ScanGeometry
from models.images import place_image
from models.inference import FLOAT32
from models.scan import Scan

FINGERPRINT = "0123456789abcdef" * 4
SMALL = DetectorConfiguration(
    geometry=ScanGeometry(image_size=97), encoder=DensePatchConfiguration(width=4), inference=FLOAT32
)


def part(seed: int, height: int, width: int, defect: Box | None = None) -> NDArray[np.uint8]:
    """A plate with a light gradient and noise, (height, width, 3); chequered where it has a defect."""
    random = np.random.default_rng(seed)
    light = np.linspace(110, 150, width)[None, :, None] * np.array([1.0, 0.8, 0.6])
    image: NDArray[np.uint8] = (light + random.normal(0, 6, (height, width, 3))).astype(np.uint8)
    if defect is not None:
        y, x = np.mgrid[: defect.height, : defect.width]
        chequered = ((x // 4 + y // 4) % 2 * 255).astype(np.uint8)[:, :, None]
        image[defect.y : defect.y + defect.height, defect.x : defect.x + defect.width] = chequered
    return image


def learn(configuration: DetectorConfiguration) -> tuple[Scan, CalibrationSet]:
    """An untrained encoder; a bank and a calibration of random parts."""
    torch.manual_seed(0)
    encoder = create_encoder(configuration.encoder, configuration.geometry)
    density = create_density(configuration.density)
    scan = Scan(configuration, encoder, density, torch.device("cpu"))
    side = configuration.geometry.image_size
    placed = [place_image(part(seed, 90, 120), side, configuration.resize) for seed in range(8)]
    parts = np.stack([pixels for pixels, _ in placed])
    density.fit(scan.embed(parts[:3]).flatten(0, 2).numpy()[::2])
    contents = [placement.content for _, placement in placed[3:]]
    return scan, calibrate(scan, configuration.geometry, parts[3:], contents)


learn_once = cache(learn)  # for the tests that leave the encoder as it is


def detector_of(learned: tuple[Scan, CalibrationSet], operating_point: OperatingPoint | None = None) -> Detector:
    training = {"steps": 0, "note": "untrained"}
    return Detector("plate", *learned, operating_point, data_fingerprint=FINGERPRINT, training=training)


def make(configuration: DetectorConfiguration = SMALL, operating_point: OperatingPoint | None = None) -> Detector:
    return detector_of(learn_once(configuration), operating_point)


def saved(detector: Detector, folder: Path, version: int | None = None) -> Path:
    folder.mkdir()
    detector.save(folder, version)
    return folder


def point(image_threshold: float, pixel_threshold: float, **settings: tuple[float, float]) -> OperatingPoint:
    return OperatingPoint(
        image_threshold=image_threshold, pixel_threshold=pixel_threshold, false_reject_rate=0.1, **settings
    )
