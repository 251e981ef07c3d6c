"""Crops, an encoder and slow versions that the tests of the pretext tasks share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.encoders import DensePatch, Encoder
from models.geometry import ScanGeometry

GEOMETRY = ScanGeometry()
SIDE, STRIDE = GEOMETRY.patch_size, GEOMETRY.stride


class Recorder(Encoder):
    """Passes everything on to an encoder, and keeps what it was given."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.geometry)
        self.encoder = encoder
        self.dimension, self.feature_dimension = encoder.dimension, encoder.feature_dimension
        self.seen = torch.empty(0)

    def features(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.encoder.features(images)


def make_encoder() -> DensePatch:
    """Random weights, and batch norm in evaluation mode, so that a window counts by itself."""
    torch.manual_seed(0)
    return DensePatch(GEOMETRY, width=2).eval()


def random_crops(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def window_boxes(size: int) -> list[tuple[int, int]]:
    """Top and left of every window of a crop, row by row."""
    starts = range(0, size - SIDE + 1, STRIDE)
    return [(top, left) for top in starts for left in starts]


def slow_mean_loss(logits: list[Tensor], labels: list[int]) -> float:
    """Mean of -log softmax(logits)[label], one at a time."""
    losses = []
    for row, label in zip(logits, labels, strict=True):
        exponentials = [math.exp(value) for value in row.flatten().tolist()]
        losses.append(-math.log(exponentials[label] / sum(exponentials)))
    return sum(losses) / len(losses)


def slow_accuracy(logits: list[Tensor], labels: list[int]) -> float:
    return sum(int(row.argmax()) == label for row, label in zip(logits, labels, strict=True)) / len(labels)
