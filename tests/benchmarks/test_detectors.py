"""The detector that is trained for a benchmark: made once, and again where its settings are others."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import detectors
from benchmarks.detectors import PRODUCT, load_active, prepare
from models.configuration import DetectorConfiguration
from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry
from models.store import ModelStore
from models.store_errors import StoreError

NARROW, WIDE = (
    DetectorConfiguration(geometry=ScanGeometry(image_size=64), encoder=DensePatchConfiguration(width=width))
    for width in (2, 3)
)


def test_made_once_for_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "TRAIN_IMAGES", 8)
    monkeypatch.setattr(detectors, "TEST_IMAGES", 4)
    models, category, images = prepare(tmp_path, 1, "cpu", NARROW)
    assert category == PRODUCT
    assert images
    assert all(image.exists() for image in images)
    assert load_active(models, category, "cpu").scan.configuration.encoder == NARROW.encoder
    assert prepare(tmp_path, 1, "cpu", NARROW) == (models, category, images)
    assert ModelStore(models).versions(PRODUCT) == [1]
    others, _, _ = prepare(tmp_path, 1, "cpu", WIDE)
    assert load_active(others, category, "cpu").scan.configuration.encoder == WIDE.encoder


def test_no_active_version(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="chip"):
        load_active(tmp_path, "chip", "cpu")
