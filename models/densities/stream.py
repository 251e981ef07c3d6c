"""Embeddings of the training images, a part after the other: of a large bank there is never more than one copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

PART = 4096  # embeddings; about what an image has


class EmbeddingStream(Protocol):
    """Embeddings that can be gone through as often as needed, in the same order each time.

    Attributes:
        count: how many there are, N.
        dimension: the length D of each.
    """

    @property
    def count(self) -> int: ...
    @property
    def dimension(self) -> int: ...
    def __iter__(self) -> Iterator[Tensor]:
        """Parts (n, D) float32, finite, on whatever device; the n add up to ``count``."""
        ...


class HeldEmbeddings:
    """A stream of embeddings that are in memory already: (N, D) float32, kept and not copied."""

    def __init__(self, embeddings: Tensor) -> None:
        self._embeddings = embeddings
        self.count, self.dimension = embeddings.shape

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.split(self._embeddings, PART))
