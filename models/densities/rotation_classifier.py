"""The rotation classifier's own score, the baseline without a density (Sohn et al., section 3.1.1, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from models.densities.base import Density, refuse_no_numbers
from models.encoders import Encoder
from models.heads import ROTATIONS, projection_head, window_vectors

HEAD = "head."  # before the names of its arrays


class RotationClassifierConfiguration(BaseModel):
    """``score``: over all four rotations, as the authors use it, or of the upright window alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["rotation_classifier"] = "rotation_classifier"
    score: Literal["all_rotations", "upright"] = "all_rotations"


class RotationClassifier(Density):
    """How surely the head that rotation prediction trained tells which way round a window x is.

    ``all_rotations`` is sum_y log p(y | rot90(x, y)) over the four rotations: it ranks as their product, which is what
    the authors' code evaluates. ``upright`` is log p(0 | x). No score is above 0. It learns nothing from embeddings and
    scores none: the head takes features before normalisation, and of the window turned four ways. ``adopt`` hands it
    the trained head in place of ``fit``.

    Attributes:
        dimension: length F of the encoder's features.
    """

    configuration: RotationClassifierConfiguration

    def __init__(
        self, configuration: RotationClassifierConfiguration | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(configuration or RotationClassifierConfiguration(), device)

    def adopt(self, head: nn.Sequential) -> Self:
        """Take the head that ``projection_head`` made and rotation prediction trained: (n, F) -> (n, 4) logits."""
        layers = [layer for layer in head if isinstance(layer, nn.Linear)]
        shape = {
            "samples": 0,
            "dimension": layers[0].in_features,
            "depth": len(layers) - 1,
            "width": layers[0].out_features,
        }
        weights = {f"{HEAD}{name}": tensor.cpu().contiguous() for name, tensor in head.state_dict().items()}
        self._adopt({**{name: torch.tensor(size) for name, size in shape.items()}, **weights})
        return self

    def score_map_with_error(
        self, encoder: Encoder, images: Tensor, embeddings: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``Density.score_map_with_error``, without use for the embeddings."""
        if not self.dimension:
            raise RuntimeError("this RotationClassifier has no head: call adopt first")
        with torch.no_grad():
            scores = self.window_scores(encoder, images)
        refuse_no_numbers(scores)
        return scores, torch.zeros_like(scores)

    def window_scores(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Scores (B, h, w) of the windows of images (B, 3, H, W) in [0, 1], whether they are numbers or not.

        The image is turned as a whole: its windows are then the turned windows, once edge pixels that no window covers
        are cut off.
        """
        height, width = (_scanned(length, encoder) for length in images.shape[2:])
        scanned = images[:, :, :height, :width]
        rotations = range(ROTATIONS if self.configuration.score == "all_rotations" else 1)
        return torch.stack([self._log_probability(encoder, scanned, rotation) for rotation in rotations]).sum(dim=0)

    def scores(self, queries: Tensor) -> NoReturn:
        """Refused: an embedding does not tell how its window looks turned."""
        raise TypeError("a rotation classifier scores images and not embeddings: use score_map")

    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in super().facts().items() if not name.startswith(HEAD)}

    def _fit(self, X: NDArray[np.float32]) -> NoReturn:
        raise TypeError("a rotation classifier learns nothing from embeddings: hand it the trained head with adopt")

    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        head = projection_head(int(state["dimension"]), int(state["depth"]), int(state["width"]), ROTATIONS)
        head.load_state_dict({name.removeprefix(HEAD): state[name] for name in state if name.startswith(HEAD)})
        self._head = head.to(self.device).eval()

    def _log_probability(self, encoder: Encoder, images: Tensor, rotation: int) -> Tensor:
        """log p(rotation | the window turned by it): (B, 3, H, W) -> (B, h, w)."""
        features = encoder.features(torch.rot90(images, rotation, dims=(2, 3)))  # (B, F, h or w, w or h)
        logits = self._head(window_vectors(features.float()))
        log_probabilities = logits.log_softmax(dim=1)[:, rotation].view(-1, *features.shape[2:])
        return torch.rot90(log_probabilities, -rotation, dims=(1, 2))


def _scanned(length: int, encoder: Encoder) -> int:
    """Pixels of an edge that the windows cover."""
    geometry = encoder.geometry
    return geometry.patch_size + geometry.stride * (geometry.windows(length) - 1)
