"""Rotation prediction (Sohn et al., section 3.1.1, eq. 1)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from models.encoders import Encoder
from models.heads import ROTATIONS, projection_head, window_vectors
from training.augmentation import view_augmentation
from training.pretext.base import PretextResult, PretextTask


class RotationConfiguration(BaseModel):
    """``head_depth`` and ``head_width``: the MLP projection head; the paper's is 512 x 8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["rotation"] = "rotation"
    head_depth: int = Field(default=8, ge=0)
    head_width: int = Field(default=512, ge=1)

    @field_validator("head_depth")
    @classmethod
    def _has_a_head(cls, depth: int) -> int:
        if depth == 0:
            raise ValueError("rotation prediction without an MLP head is RotNet: use the pretext task rotnet")
        return depth


class RotNetConfiguration(BaseModel):
    """Rotation prediction without an MLP head: a linear layer on the features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["rotnet"] = "rotnet"


class Rotation(PretextTask):
    """Cross-entropy over {0, 90, 180, 270} degrees of rot90(A(x), y), every crop in all four rotations.

    A crop of many windows gives all of them its own label: each window of a rotated crop is a rotated window.
    Parts that look the same from every side (a bottle from above) give this task nothing to learn.

    Attributes:
        head: the classifier of rotations, (n, F) -> (n, 4) logits.
    """

    def __init__(
        self, configuration: RotationConfiguration | RotNetConfiguration, dimension: int, crop_size: int
    ) -> None:
        super().__init__()
        self.augment = view_augmentation(crop_size)
        match configuration:
            case RotationConfiguration():
                self.head = projection_head(dimension, configuration.head_depth, configuration.head_width, ROTATIONS)
            case RotNetConfiguration():
                self.head = projection_head(dimension, 0, 0, ROTATIONS)

    def forward(self, encoder: Encoder, crops: Tensor) -> PretextResult:
        """Loss and accuracy of the rotation classifier on (B, 3, C, C) crops."""
        views = self.augment(crops)
        rotated = torch.cat([torch.rot90(views, turns, dims=(2, 3)) for turns in range(ROTATIONS)])
        features = encoder.features(rotated)  # (4 B, D, h, w)
        windows = features.shape[2] * features.shape[3]
        labels = torch.arange(ROTATIONS, device=crops.device).repeat_interleave(len(crops) * windows)
        logits = self.head(window_vectors(features))
        return PretextResult(F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).float().mean())
