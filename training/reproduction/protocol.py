"""What a study trains on and what it measures; the semantic and the defect protocol each fill it in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.encoders import EncoderConfiguration
from models.geometry import ScanGeometry
from training.reproduction.methods import CLASSIFIERS, METHODS, Classifier, Method
from training.reproduction.settings import Size
from training.trainer import Trainer


class Trial(NamedTuple):
    """One training of one representation."""

    subject: str
    method: str
    seed: int

    @property
    def label(self) -> str:
        """For people, and for the name of its folder."""
        return f"{self.subject} {self.method} seed {self.seed}"


class Measured(NamedTuple):
    """What one classifier reached on one representation, by the name of the metric; AUROC in percent."""

    classifier: str
    figures: dict[str, float]


class Group(NamedTuple):
    """Subjects that the paper averages over: ``members`` are those that there can be."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Protocol(ABC):
    """A protocol on a folder of data. It travels to other processes, so it holds no images until it is asked for them.

    Attributes:
        data: the folder.
        size: what it may cost.
        subjects: classes or categories, each of which is trained on by itself.
    """

    data: Path
    size: Size
    subjects: tuple[str, ...]

    @property
    @abstractmethod
    def name(self) -> str:
        """Says which protocol on which data set."""

    @property
    @abstractmethod
    def geometry(self) -> ScanGeometry:
        """Of the encoder."""

    @property
    def methods(self) -> Mapping[str, Method]:
        """Representations that there are, by name, in the order of the tables."""
        return METHODS

    @property
    def classifiers(self) -> Mapping[str, Classifier]:
        """One-class classifiers that there are, likewise."""
        return CLASSIFIERS

    def encoder(self, trial: Trial) -> EncoderConfiguration:
        """The method's own network, or that of the size."""
        return self.methods[trial.method].encoder or self.size.encoder

    @property
    @abstractmethod
    def paper_datasets(self) -> Mapping[str, str | None]:
        """The name that the paper's tables give each metric's data set, if any; its keys are the metrics."""

    @property
    @abstractmethod
    def groups(self) -> Sequence[Group]:
        """What is averaged over, the last of them over all subjects."""

    @abstractmethod
    def check(self, trial: Trial) -> None:
        """Raise a DataError where ``trial`` cannot be measured, before hours of training."""

    @abstractmethod
    def train_images(self, trial: Trial) -> NDArray[np.uint8]:
        """(N, S, S, 3) good images to train the representation on and to fit the classifiers on."""

    @abstractmethod
    def measure(
        self, trial: Trial, trainer: Trainer, classifiers: Mapping[str, Classifier], device: torch.device
    ) -> Iterator[Measured]:
        """Fit each classifier on the embeddings of the good images and score the test images.

        Args:
            trial: its subject is measured, its seed is that of what is drawn at random.
            trainer: has trained the encoder, in evaluation mode, and the head of the pretext task.
            classifiers: those to measure, by name.
            device: where to compute.
        """
