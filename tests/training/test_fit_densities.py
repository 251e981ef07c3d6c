"""Every density goes all the way: fitted on an encoder's embeddings, published, loaded again, the same scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.configuration import DetectorConfiguration
from models.densities import (
    DensityConfiguration,
    GaussianDensityConfiguration,
    GaussianMixtureConfiguration,
    KernelDensityConfiguration,
    NearestNeighboursConfiguration,
    OneClassSVMConfiguration,
)
from models.detector import Detector
from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry
from models.images import read_image
from models.store import ModelStore
from training.data import DataError, open_dataset
from training.fit import FitConfiguration, fit
from training.synthetic import generate
from training.trainer import TrainingConfiguration, TrainingError

CPU = torch.device("cpu")
CATEGORY = "tile"
IMAGES, HELD_OUT = 10, 2
BANK = 200
DENSITIES: tuple[DensityConfiguration, ...] = (
    KernelDensityConfiguration(),
    KernelDensityConfiguration(mode="neighbours", neighbours=5),
    OneClassSVMConfiguration(),
    OneClassSVMConfiguration(kernel="linear"),
    GaussianDensityConfiguration(),
    GaussianMixtureConfiguration(components=3),
    NearestNeighboursConfiguration(),
)


def configured(density: DensityConfiguration) -> FitConfiguration:
    return FitConfiguration(
        detector=DetectorConfiguration(
            geometry=ScanGeometry(image_size=64), encoder=DensePatchConfiguration(width=2), density=density
        ),
        training=TrainingConfiguration(steps=2, batch_size=4, crop_patches=1),
        bank_size=BANK,
        calibration_fraction=HELD_OUT / IMAGES,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generate(folder, CATEGORY, train=IMAGES, test_good=1, test_defects=1, image_size=64)
    return folder


@pytest.mark.parametrize("density", DENSITIES, ids=lambda density: "-".join(map(str, density.model_dump().values())))
def test_fit_publish_load_predict(data: Path, tmp_path: Path, density: DensityConfiguration) -> None:
    dataset = open_dataset(data, CATEGORY)
    detector = fit(dataset, configured(density), device=CPU, folder=tmp_path / "run").detector
    store = ModelStore(tmp_path / "models")
    loaded = Detector.load(store.folder(CATEGORY, store.publish(CATEGORY, detector.save)), "cpu")
    assert loaded.scan.configuration.density == density
    [member] = loaded.scan.members
    assert member.density.samples == BANK
    assert loaded.description()["members"] == detector.description()["members"]
    images = [read_image(sample.path) for sample in dataset.test]
    for before, after in zip(detector.predict(images), loaded.predict(images), strict=True):
        np.testing.assert_array_equal(after.score_map, before.score_map)
        assert len(np.unique(after.score_map)) > 1
        assert np.isfinite(after.anomaly_map).all()
        assert after.verdict is before.verdict


@pytest.mark.parametrize(
    "density",
    [GaussianMixtureConfiguration(components=BANK + 1), NearestNeighboursConfiguration(neighbours=BANK + 1)],
    ids=lambda density: density.name,
)
def test_a_bank_that_is_too_small_is_refused_before_training(
    data: Path, tmp_path: Path, density: DensityConfiguration
) -> None:
    with pytest.raises(DataError, match=f"at least {BANK + 1} embeddings, not {BANK}"):
        fit(open_dataset(data, CATEGORY), configured(density), device=CPU, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_collapsed_is_said_to_have(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_alike(*_: object) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return np.ones((BANK, 16), np.float32)

    monkeypatch.setattr("training.fit.draw_bank", all_alike)
    with pytest.raises(TrainingError, match="gaussian_density cannot be fitted: the embeddings are all the same"):
        fit(
            open_dataset(data, CATEGORY),
            configured(GaussianDensityConfiguration()),
            device=CPU,
            folder=tmp_path / "run",
        )
