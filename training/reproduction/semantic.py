"""The whole-image one-class protocol of section 4: train on one class's images, test on all classes'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.densities import RotationClassifier, create_density
from models.device import keep_float32
from models.encoders import as_input
from models.geometry import ScanGeometry
from training.metrics import auroc
from training.pretext import Rotation
from training.reproduction.datasets import DATASETS, Labelled, SemanticDataset, Split
from training.reproduction.methods import Classifier
from training.reproduction.paper import MEAN
from training.reproduction.protocol import Group, Measured, Protocol, Trial
from training.trainer import Trainer

BATCH = 256  # images embedded at a time
TEST_SEED = 0  # of the test images drawn where not all are scored: the same ones for every method


@dataclass(frozen=True)
class Semantic(Protocol):
    """AUROC of the images of all other classes against those of one class, at the test split.

    Attributes:
        dataset: a name of ``DATASETS``.
    """

    dataset: str

    @property
    def name(self) -> str:
        return f"semantic {self.dataset}"

    @property
    def source(self) -> SemanticDataset:
        """The data set."""
        return DATASETS[self.dataset]

    @property
    def geometry(self) -> ScanGeometry:
        """One window, as large as the image."""
        side = self._side
        return ScanGeometry(image_size=side, patch_size=side)

    @property
    def _side(self) -> int:
        return self.size.image_size or self.source.image_size

    @property
    def paper_datasets(self) -> Mapping[str, str | None]:
        return {"auroc": self.source.paper}

    @property
    def groups(self) -> Sequence[Group]:
        return [Group(MEAN, self.source.classes)]

    @property
    def split(self) -> Split:
        """The images of all classes."""
        return _load(self.dataset, self.data, self._side)

    def number(self, trial: Trial) -> int:
        """The label of the class that is the normal one."""
        return self.source.classes.index(trial.subject)

    def check(self, trial: Trial) -> None:
        _ = self.split

    def train_images(self, trial: Trial) -> NDArray[np.uint8]:
        images, labels = self.split.train
        chosen: NDArray[np.uint8] = images[labels == self.number(trial)]
        return chosen

    def test_images(self) -> Labelled:
        """The same ones for every trial."""
        images, labels = self.split.test
        if self.size.test is None or self.size.test >= len(labels):
            return Labelled(images, labels)
        chosen = np.random.default_rng(TEST_SEED).permutation(len(labels))[: self.size.test]
        return Labelled(images[chosen], labels[chosen])

    def measure(
        self, trial: Trial, trainer: Trainer, classifiers: Mapping[str, Classifier], device: torch.device
    ) -> Iterator[Measured]:
        images, labels = self.test_images()
        anomalous = labels != self.number(trial)
        train = self.train_images(trial)
        chosen = np.random.default_rng(trial.seed).permutation(len(train))[: self.size.fit]
        encoder = trainer.encoder
        learned, embedded = compute_all(train[chosen], encoder, device), compute_all(images, encoder, device)
        for name, classifier in classifiers.items():
            density = create_density(classifier.density, device)
            if isinstance(density, RotationClassifier):
                assert isinstance(trainer.task, Rotation)  # Method.fits has seen to it
                density.adopt(trainer.task.head)
                scores = compute_all(images, partial(density.score_map, encoder), device)
            else:
                scores = density.fit(learned).score_samples(embedded)
            yield Measured(name, {"auroc": 100 * auroc(anomalous, -scores)})


@cache
def _load(dataset: str, folder: Path, side: int) -> Split:
    """Read once a process: every class of it is in the same files."""
    return DATASETS[dataset].load(folder, side)


@torch.inference_mode()
def compute_all(
    images: NDArray[np.uint8], compute: Callable[[Tensor], Tensor], device: torch.device
) -> NDArray[np.float32]:
    """What ``compute`` makes of images (B, 3, S, S): embeddings (B, D, 1, 1) or scores (B, 1, 1), as (N, D) or (N,)."""
    keep_float32()
    parts = []
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(images[start : start + BATCH]).to(device)
        parts.append(compute(as_input(pixels))[..., 0, 0])
    return torch.cat(parts).cpu().numpy()
