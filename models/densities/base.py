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
GAMMA_NUMERATOR = 10.0  # the paper's bandwidth: ten times scikit-learn's "scale"
NOT_FINITE = "embeddings must be finite; found NaN or infinity"


class Density(ABC):
    """A one-class classifier on embeddings (Sohn et al., section 3.2); higher scores are more normal.

    Subclasses implement ``_fit``, ``scores`` and ``_restore``, and keep in ``state`` all that they have learned.

    Args:
        configuration: its settings; a subclass has a class of its own for them.
        device: where scores are computed.

    Attributes:
        dimension: length D of an embedding; 0 before ``fit``.
        samples: embeddings that it was fitted on.
    """

    def __init__(self, configuration: BaseModel, device: torch.device | str = "cpu") -> None:
        self.configuration = configuration
        self.device = torch.device(device)
        self.dimension = 0
        self.samples = 0

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
        self._fit(X)
        self.samples, self.dimension = X.shape
        return self

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
            raise RuntimeError(f"this {type(self).__name__} has learned nothing: call fit first")
        queries = X if isinstance(X, Tensor) else torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"expected embeddings (n, {self.dimension}), not {tuple(queries.shape)}")
        if not torch.isfinite(queries).all():  # a NaN score would compare as good with every threshold
            raise ValueError(NOT_FINITE)
        with torch.no_grad():
            return self.scores(queries.to(self.device, torch.float32)).cpu().numpy()

    def score_map(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Scores of every window: images (B, 3, H, W) in [0, 1] on the device -> (B, h, w) float32."""
        embeddings = encoder(images).permute(0, 2, 3, 1)  # (B, h, w, D)
        scores = torch.from_numpy(self.score_samples(embeddings.flatten(0, 2)))
        return scores.view(embeddings.shape[:3])

    @abstractmethod
    def scores(self, queries: Tensor) -> Tensor:
        """Scores (n,) of embeddings (n, D), float32 on the device; differentiable where the classifier is."""

    def facts(self) -> dict[str, Any]:
        """What it has learned that a person would ask for, ready for JSON."""
        return {"samples": self.samples, "dimension": self.dimension}

    def save(self, folder: Path) -> None:
        """Write what it has learned into ``folder``."""
        shape = {"samples": torch.tensor(self.samples), "dimension": torch.tensor(self.dimension)}
        state = {name: tensor.cpu().contiguous() for name, tensor in {**shape, **self.state()}.items()}
        save_file(state, folder / DENSITY_FILE)

    def restore(self, folder: Path) -> Self:
        """Take back what ``save`` wrote."""
        state = load_file(folder / DENSITY_FILE)
        self.samples, self.dimension = int(state["samples"]), int(state["dimension"])
        self._restore(state, folder)
        return self

    @abstractmethod
    def _fit(self, X: NDArray[np.float32]) -> None:
        """Learn from (N, D) finite embeddings."""

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """The arrays that it has learned, by name; ``samples`` and ``dimension`` are kept beside them."""

    @abstractmethod
    def _restore(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """Take back ``state``; ``folder`` is where files of the classifier's own lie."""


def paper_gamma(X: NDArray[np.float32]) -> float:
    """The paper's inverse kernel width, 10 / (D Var(X)), Var over all entries of (N, D) (eq. 6, section A.1).

    Raises:
        ValueError: if X is constant; gamma would be infinite.
    """
    variance = float(X.var(dtype=np.float64))
    if variance == 0:
        raise ValueError("the embeddings are all the same: gamma = 10 / (D Var) does not exist; set gamma")
    return float(GAMMA_NUMERATOR / (X.shape[1] * variance))
