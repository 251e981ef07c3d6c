"""The semantic protocol on variants: other training images, and figures of f and of g(f) with their uniformity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.densities import create_density
from models.heads import ROTATIONS
from training.analysis.definitions import CLASSIFIERS, VARIANTS, Fitted, Representation, Variant
from training.data import DataError
from training.metrics import auroc
from training.mmd import squared_mmd_to_uniform
from training.pretext import Contrastive, PretextTask, Rotation
from training.reproduction.methods import Classifier
from training.reproduction.protocol import Measured, Trial
from training.reproduction.semantic import TEST_SEED, Semantic, compute_all
from training.trainer import Trainer

AUROC, SQUARED_MMD = "auroc", "squared_mmd"


class Training(NamedTuple):
    """(N, S, S, 3) images, and which of them (N,) are of the class itself."""

    images: NDArray[np.uint8]
    own: NDArray[np.bool_]


@dataclass(frozen=True)
class Variations(Semantic):
    """AUROC as in the semantic protocol, and MMD^2 between embeddings that a classifier is fitted on and the sphere."""

    @property
    def name(self) -> str:
        return f"analysis {self.dataset}"

    @property
    def methods(self) -> Mapping[str, Variant]:
        return VARIANTS

    @property
    def classifiers(self) -> Mapping[str, Fitted]:
        return CLASSIFIERS

    @property
    def paper_datasets(self) -> Mapping[str, str | None]:
        return {AUROC: self.source.paper, SQUARED_MMD: None}

    def check(self, trial: Trial) -> None:
        variant = self.methods[trial.method]
        labels = self.split.train.labels
        own = int(np.count_nonzero(labels == self.number(trial)))
        needed = max([variant.train_images or 0, *(c.clean or 0 for c in self.classifiers.values() if variant.fits(c))])
        outliers = _outliers(own, variant)
        if own < needed:
            raise DataError(f"{trial.method} needs {needed} training images of class {trial.subject}; there are {own}")
        if len(labels) - own < outliers:
            raise DataError(
                f"{trial.method} needs {outliers} training images of other classes than {trial.subject}; there are "
                f"{len(labels) - own}"
            )

    def train_images(self, trial: Trial) -> NDArray[np.uint8]:
        return self.training(trial).images

    def measure(
        self, trial: Trial, trainer: Trainer, classifiers: Mapping[str, Classifier], device: torch.device
    ) -> Iterator[Measured]:
        train, own = self.training(trial)
        test, labels = self.test_images()
        if self.methods[trial.method].turned:
            test = _turned(test, np.random.default_rng(TEST_SEED))
        anomalous = labels != self.number(trial)
        fitted = {name: self.fitted_on(self.classifiers[name], own, trial.seed) for name in classifiers}
        used = np.unique(np.concatenate(list(fitted.values())))
        learned = _represent(train[used], trainer, device)
        embedded = _represent(test, trainer, device)
        for name, indices in fitted.items():
            classifier = self.classifiers[name]
            known = learned[classifier.representation][np.searchsorted(used, indices)]
            density = create_density(classifier.density, device).fit(known)
            scores = density.score_samples(embedded[classifier.representation])
            yield Measured(name, {AUROC: 100 * auroc(anomalous, -scores), SQUARED_MMD: squared_mmd_to_uniform(known)})

    def fitted_on(self, classifier: Fitted, own: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
        """Which training images ``classifier`` sees: their numbers, drawn at random; ``own`` (N,) are of the class."""
        order = np.random.default_rng(seed).permutation(len(own))
        return order[: self.size.fit] if classifier.clean is None else order[own[order]][: classifier.clean]

    def training(self, trial: Trial) -> Training:
        """The variant's training images, the same ones whenever they are asked for."""
        variant = self.methods[trial.method]
        random = np.random.default_rng(trial.seed)
        images = super().train_images(trial)
        if variant.train_images is not None:
            images = images[random.permutation(len(images))[: variant.train_images]]
        own = len(images)
        if variant.outliers:
            others, labels = self.split.train
            foreign = np.flatnonzero(labels != self.number(trial))
            images = np.concatenate([images, others[random.permutation(foreign)[: _outliers(own, variant)]]])
        if variant.turned:
            images = _turned(images, random)
        return Training(images, np.arange(len(images)) < own)


def _represent(
    images: NDArray[np.uint8], trainer: Trainer, device: torch.device
) -> dict[Representation, NDArray[np.float32]]:
    """f / ||f|| and g(f) / ||g(f)|| of images (N, S, S, 3): (N, F) and (N, G)."""
    features = torch.from_numpy(compute_all(images, trainer.encoder.features, device)).to(device)
    head = projection(trainer.task).eval()
    with torch.inference_mode():
        found: dict[Representation, Tensor] = {"f": features, "g": head(features)}
        return {name: F.normalize(vectors, dim=1).cpu().numpy() for name, vectors in found.items()}


def projection(task: PretextTask) -> nn.Sequential:
    """g, (n, F) -> (n, G): for rotation prediction without the last layer, which classifies.

    Of RotNet that leaves nothing, and g(f) is f.
    """
    assert isinstance(task, Rotation | Contrastive)  # no analysis varies another
    return task.head[:-1] if isinstance(task, Rotation) else task.head


def _outliers(own: int, variant: Variant) -> int:
    """How many make up their percentage beside ``own`` images of the class."""
    return round(own * variant.outliers / (100 - variant.outliers))


def _turned(images: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    turned = images.copy()
    turns = random.integers(ROTATIONS, size=len(images))
    for turn in range(1, ROTATIONS):
        turned[turns == turn] = np.rot90(images[turns == turn], turn, axes=(1, 2))
    return turned
