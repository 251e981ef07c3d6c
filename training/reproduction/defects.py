"""The defect protocol of section 4.2 and appendix B: patches of MVTec AD's images, detection and localization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.densities import create_density
from models.detector import DetectorConfiguration, Scan
from models.geometry import ScanGeometry
from models.inference import FLOAT32
from training.data import GOOD, DataError, LoadedImages, load_images, load_mask, open_dataset
from training.fit import fit_density
from training.metrics import RankedPixels, auroc
from training.mvtec import OBJECTS, TEXTURES
from training.reproduction.methods import Classifier
from training.reproduction.protocol import Group, Measured, Protocol, Trial
from training.reproduction.settings import MVTEC_GEOMETRY
from training.trainer import Trainer

DETECTION, LOCALIZATION = "image_auroc", "pixel_auroc"


@dataclass(frozen=True)
class Defects(Protocol):
    """Table 12: AUROC of images by the largest score of their windows, and of pixels by the upsampled scores."""

    @property
    def name(self) -> str:
        return "mvtec"

    @property
    def geometry(self) -> ScanGeometry:
        return MVTEC_GEOMETRY

    @property
    def paper_datasets(self) -> Mapping[str, str | None]:
        return {DETECTION: "MVTec AD detection", LOCALIZATION: "MVTec AD localization"}

    @property
    def groups(self) -> Sequence[Group]:
        return [Group("object", OBJECTS), Group("texture", TEXTURES), Group("all", OBJECTS + TEXTURES)]

    def check(self, trial: Trial) -> None:
        dataset = open_dataset(self.data, trial.subject)
        kinds = {sample.defect == GOOD for sample in dataset.test}
        if kinds != {True, False}:
            raise DataError(f"{dataset.root}/test must hold both {GOOD} images and defective ones to be measured")

    def train_images(self, trial: Trial) -> NDArray[np.uint8]:
        return _load(self.data, trial.subject, self.geometry.image_size, train=True).images

    def measure(
        self, trial: Trial, trainer: Trainer, classifiers: Mapping[str, Classifier], device: torch.device
    ) -> Iterator[Measured]:
        train = self.train_images(trial)
        samples = open_dataset(self.data, trial.subject).test
        test = _load(self.data, trial.subject, self.geometry.image_size, train=False)
        masks = np.stack([load_mask(*pair) for pair in zip(samples, test.placements, strict=True)])
        defective = np.array([sample.defect != GOOD for sample in samples])
        for name, classifier in classifiers.items():
            density = create_density(classifier.density, device)
            configuration = DetectorConfiguration(
                geometry=self.geometry,
                encoder=self.encoder(trial),
                density=classifier.density,
                inference=FLOAT32,  # the paper's figures are of one precision on every machine
            )
            scan = Scan(configuration, trainer.encoder, density, device)
            fit_density(scan, trainer.task, train, self.size.fit, trial.seed)
            pairs = [scan.maps(image[None]) for image in test.images]
            image_scores = np.array([scores.max() for scores, _ in pairs])
            pixels = RankedPixels(np.concatenate([maps for _, maps in pairs]), masks)
            figures = {DETECTION: auroc(defective, image_scores), LOCALIZATION: pixels.auroc()}
            yield Measured(name, {metric: 100 * value for metric, value in figures.items()})


@lru_cache(maxsize=2)  # the training and the test images of the category that is worked on
def _load(data: Path, category: str, size: int, *, train: bool) -> LoadedImages:
    dataset = open_dataset(data, category)
    paths = dataset.train if train else [sample.path for sample in dataset.test]
    return load_images(paths, size=size, mode="squash")
