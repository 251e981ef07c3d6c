"""Projection heads: what a pretext task trains on top of the encoder; a detector keeps one only where it scores."""

from __future__ import annotations

from torch import Tensor, nn

ROTATIONS = 4  # quarter turns, the classes of rotation prediction


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
