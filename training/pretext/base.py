"""What a pretext task is: a loss on crops of good images that makes the encoder learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from models.encoders import Encoder


class PretextResult(NamedTuple):
    """One step's outcome: ``loss`` to differentiate, ``accuracy`` in [0, 1] to watch."""

    loss: Tensor
    accuracy: Tensor


class PretextTask(nn.Module):
    """A self-supervised objective, with the projection head and the augmentation that belong to it.

    The head's parameters are trained with the encoder's and thrown away after. Random choices come from torch's
    global generator of the crops' device and of the CPU, so that a checkpoint of those two resumes exactly.
    """

    def prepare(self, encoder: Encoder, sample: Callable[[], Tensor]) -> None:
        """Whatever must be known before the first step; not called when a run is resumed.

        Args:
            encoder: as it is before training.
            sample: draws a batch of crops (B, 3, C, C) in [0, 1].
        """

    def forward(self, encoder: Encoder, crops: Tensor) -> PretextResult:
        """Loss on a batch.

        Args:
            encoder: the network being trained.
            crops: (B, 3, C, C) float in [0, 1]; with C above the patch size one crop trains many windows.
        """
        raise NotImplementedError


def projection_head(dimension: int, depth: int, width: int, outputs: int, *, bias: bool = True) -> nn.Sequential:
    """``depth`` times (linear, batch norm, ReLU), then a linear layer: g of section A.4, which has 512 x 8.

    Maps (n, dimension) to (n, outputs); with depth 0 it is the linear layer alone. ``bias`` is the last layer's.
    """
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(dimension, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        dimension = width
    return nn.Sequential(*layers, nn.Linear(dimension, outputs, bias=bias))


def window_vectors(features: Tensor) -> Tensor:
    """(B, D, h, w) -> (B * h * w, D): every window a row, in the order of ``labels.flatten()`` of (B, h, w)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)
