"""The defect protocol of section 4.2 and appendix B: patches of MVTec AD's images, detection and localization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.configuration import DetectorConfiguration
from models.densities import create_density
from models.geometry import ScanGeometry
from models.images import ImageError
from models.inference import FLOAT32
from models.scan import Scan
from training.data import GOOD, DataError, load_images, load_mask, open_dataset
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
        """Its test images and masks are read, too: they are not needed before the training has ended."""
        try:
            _load_test(self.data, trial.subject, self.geometry.image_size)
        except DataError as error:
            raise DataError(f"{error}. To measure the others alone, name them with --categories") from error

    def train_images(self, trial: Trial) -> NDArray[np.uint8]:
        return _load_train(self.data, trial.subject, self.geometry.image_size)

    def measure(
        self, trial: Trial, trainer: Trainer, classifiers: Mapping[str, Classifier], device: torch.device
    ) -> Iterator[Measured]:
        train = self.train_images(trial)
        test = _load_test(self.data, trial.subject, self.geometry.image_size)
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
            pixels = RankedPixels(np.concatenate([maps for _, maps in pairs]), test.masks)
            figures = {DETECTION: auroc(test.defective, image_scores), LOCALIZATION: pixels.auroc()}
            yield Measured(name, {metric: 100 * value for metric, value in figures.items()})


class _Test(NamedTuple):
    """(N, S, S, 3) uint8 images, their masks (N, S, S), and which of them (N,) show a defect."""

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    defective: NDArray[np.bool_]


@lru_cache(maxsize=1)  # those of the category that is worked on, here and below
def _load_train(data: Path, category: str, size: int) -> NDArray[np.uint8]:
    return load_images(open_dataset(data, category).train, size=size, mode="squash").images


@lru_cache(maxsize=1)
def _load_test(data: Path, category: str, size: int) -> _Test:
    dataset = open_dataset(data, category)
    defective = np.array([sample.defect != GOOD for sample in dataset.test])
    if defective.all() or not defective.any():
        raise DataError(f"{dataset.root}/test must hold both {GOOD} images and defective ones to be measured")
    loaded = load_images([sample.path for sample in dataset.test], size=size, mode="squash")
    try:
        masks = np.stack([load_mask(*pair) for pair in zip(dataset.test, loaded.placements, strict=True)])
    except ImageError as error:
        raise DataError(f"{error}. Mend or replace the file") from error
    if not masks.any():
        raise DataError(f"no mask of {dataset.root}/ground_truth has a defective pixel: they are black all over")
    return _Test(loaded.images, masks, defective)
