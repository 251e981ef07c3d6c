"""What every one-class classifier promises, in scikit-learn's idiom: ``fit(X)``, ``score_samples(X)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.encoders import Encoder

DENSITY_FILE = "density.safetensors"
NOTHING_LEARNED = "this {} has learned nothing: call fit first"
NOT_FINITE = "embeddings must be finite; found NaN or infinity"


class Density(ABC):
    """A one-class classifier on embeddings (Sohn et al., section 3.2); higher scores are more normal.

    Subclasses implement ``_fit``, which returns the arrays that it learned, ``_prepare``, which makes them ready to
    score, and ``scores``. What was restored is prepared as what was fitted is, so that it scores the same.

    Args:
        configuration: its settings; a subclass has a class of its own for them.
        device: where scores are computed.

    Attributes:
        dimension: length D of an embedding; 0 before ``fit``.
        samples: embeddings that it was fitted on.
        state: the arrays that it has learned, by name, on the CPU.
        fewest_samples: embeddings that ``fit`` takes at least.
    """

    fewest_samples = 1

    def __init__(self, configuration: BaseModel, device: torch.device | str = "cpu") -> None:
        self.configuration = configuration
        self.device = torch.device(device)
        self.dimension = 0
        self.samples = 0
        self.state: dict[str, Tensor] = {}

    def fit(self, X: NDArray[np.float32]) -> Self:
        """Learn from ``X``.

        Args:
            X: (N, D) finite embeddings.

        Raises:
            ValueError: if X is empty, not two-dimensional, not finite, or not what this classifier can learn from.
        """
        X = np.ascontiguousarray(X, dtype=np.float32)
        if X.ndim != 2 or 0 in X.shape:
            raise ValueError(f"expected embeddings (n, D), not an array of shape {X.shape}")
        if not np.isfinite(X).all():
            raise ValueError(NOT_FINITE)
        self.check_samples(*X.shape)
        samples, dimension = map(torch.tensor, X.shape)
        self._adopt({"samples": samples, "dimension": dimension, **self._fit(X)})
        return self

    def check_samples(self, count: int, dimension: int | None = None) -> None:
        """Refuse a number of embeddings, and where it is known a length of each, that ``fit`` would refuse.

        Raises:
            ValueError: if ``count`` is below ``fewest_samples``, or what is set needs more of either.
        """
        if count < self.fewest_samples:
            name, fewest = type(self).__name__, self.fewest_samples
            raise ValueError(f"{name} as it is set needs at least {fewest} embeddings, not {count}")

    def score_samples(self, X: NDArray[np.float32] | Tensor) -> NDArray[np.float32]:
        """Scores of embeddings.

        Args:
            X: (n, D) embeddings, an array or a tensor on any device.

        Returns:
            (n,) float32; higher is more normal.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: on another dimension than ``fit`` saw, or values that are not finite.
        """
        if not self.dimension:
            raise RuntimeError(NOTHING_LEARNED.format(type(self).__name__))
        queries = X if isinstance(X, Tensor) else torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"expected embeddings (n, {self.dimension}), not {tuple(queries.shape)}")
        refuse_no_numbers(queries)
        with torch.no_grad():
            return self.scores(queries.to(self.device, torch.float32)).cpu().numpy()

    def score_map(self, encoder: Encoder, images: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """The first of ``score_map_with_error``."""
        return self.score_map_with_error(encoder, images, embeddings)[0]

    def score_map_with_error(
        self, encoder: Encoder, images: Tensor, embeddings: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores of every window, and how far each may be off for having been sampled.

        Args:
            encoder: whose embeddings it was fitted on.
            images: (B, 3, H, W) in [0, 1] on the device.
            embeddings: (B, D, h, w), what the encoder makes of the images, where that is known already.

        Returns:
            (B, h, w) float32 on the device, both; the second as of ``scores_with_error``.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: the encoder's embeddings are not finite.
        """
        if not self.dimension:
            raise RuntimeError(NOTHING_LEARNED.format(type(self).__name__))
        of_windows = (encoder(images) if embeddings is None else embeddings).permute(0, 2, 3, 1)  # (B, h, w, D)
        with torch.no_grad():  # an encoder in channels_last has laid them out like that: flattened without a copy
            scores, errors = self.scores_with_error(of_windows.flatten(0, 2))
        refuse_no_numbers(scores)
        shape = of_windows.shape[:3]
        return scores.view(shape), errors.view(shape)

    @abstractmethod
    def scores(self, queries: Tensor) -> Tensor:
        """Scores (n,) of embeddings (n, D), float32 on the device; differentiable in the embeddings."""

    def scores_with_error(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """``scores``, and how far each may be off for having been sampled, (n,): 0 where nothing is."""
        scores = self.scores(queries)
        return scores, torch.zeros_like(scores)

    def facts(self) -> dict[str, Any]:
        """The numbers among what it has learned, ready for JSON."""
        return {name: tensor.item() for name, tensor in self.state.items() if tensor.ndim == 0}

    def save(self, folder: Path) -> None:
        """Write what it has learned into ``folder``."""
        save_file(self.state, folder / DENSITY_FILE)

    def restore(self, folder: Path) -> Self:
        """Take back what ``save`` wrote."""
        self._adopt(load_file(folder / DENSITY_FILE))
        return self

    def _adopt(self, state: Mapping[str, Tensor]) -> None:
        self.state = {name: tensor.clone() for name, tensor in state.items()}  # aligned: sums round the same again
        self._prepare(self.state)
        self.samples, self.dimension = int(state["samples"]), int(state["dimension"])

    @abstractmethod
    def _fit(self, X: NDArray[np.float32]) -> dict[str, Tensor]:
        """What it learns from (N, D) finite embeddings, by name: contiguous tensors on the CPU."""

    @abstractmethod
    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        """Make what ``_fit`` returned ready to score with, on the device."""


def refuse_no_numbers(values: Tensor) -> None:
    """Refuse embeddings that are not finite, or the scores of such: a NaN would compare as good with every threshold.

    Raises:
        ValueError: if one is not finite.
    """
    if not torch.isfinite(values).all():
        raise ValueError(NOT_FINITE)


def refuse_constant(X: NDArray[np.float32]) -> None:
    """Refuse embeddings (N, D) that do not vary: they say nothing of how far a query may lie from them.

    Raises:
        ValueError: if all embeddings are the same.
    """
    if not np.ptp(X, axis=0).any():
        raise ValueError("the embeddings are all the same: nothing can be learned of how good parts vary")
