"""Detectors to measure where no trained one is given: of a synthetic product, briefly trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from models.configuration import DetectorConfiguration
from models.detector import Detector
from models.device import resolve_device
from models.store import ModelStore
from models.store_errors import StoreError
from training.data import open_dataset
from training.fit import FitConfiguration, fit
from training.synthetic import generate
from training.trainer import TrainingConfiguration

PRODUCT = "fabric"
TRAIN_IMAGES, TEST_IMAGES, SEED = 40, 20, 0


def prepare(
    folder: Path, steps: int, device: str, configuration: DetectorConfiguration | None = None
) -> tuple[Path, str, list[Path]]:
    """A briefly trained detector; one that an earlier call made by the same settings in ``folder`` is used again.

    Args:
        folder: for data and models.
        steps: of its training.
        device: where it is trained.
        configuration: of the detector; its default if None.

    Returns:
        The model store, the category, and test images.
    """
    settings = FitConfiguration(
        detector=configuration or DetectorConfiguration(), training=TrainingConfiguration(steps=steps, seed=SEED)
    )
    digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()
    data, own = folder / "data", folder / f"{settings.detector.encoder.name}-{digest[:8]}"
    if not (data / PRODUCT).exists():
        generate(data, PRODUCT, seed=SEED, train=TRAIN_IMAGES, test_good=TEST_IMAGES, test_defects=TEST_IMAGES // 4)
    models = own / "models"
    models.mkdir(parents=True, exist_ok=True)
    store = ModelStore(models)
    if PRODUCT not in store.categories():
        torch.manual_seed(SEED)
        dataset = open_dataset(data, PRODUCT)
        detector, _ = fit(dataset, settings, device=resolve_device(device), folder=own / "run")
        store.publish(PRODUCT, detector.save)
    return models, PRODUCT, sorted((data / PRODUCT / "test").rglob("*.png"))


def load_active(models: Path, category: str, device: str) -> Detector:
    """The active version of a category.

    Raises:
        StoreError: if there is none.
    """
    store = ModelStore(models)
    version = store.active(category)
    if version is None:
        raise StoreError(f"{category} has no active version in {models}")
    return Detector.load(store.folder(category, version), device)
