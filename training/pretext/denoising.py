"""Denoising auto-encoder (Vincent, Larochelle, Bengio, Manzagol: Extracting and Composing Robust Features, ICML 2008).

A baseline representation of Sohn et al., section 4, Table 2; the paper gives neither its noise nor its decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.encoders import Encoder, extract_windows
from models.geometry import ScanGeometry
from models.heads import projection_head, window_vectors
from training.pretext.base import PretextResult, PretextTask

CHANNELS = 3
SAMPLES = 16  # batches of crops that the mean and the deviation are taken of
SMALLEST_DEVIATION = 1 / 255  # one grey level, where the crops are all of one colour


class DenoisingConfiguration(BaseModel):
    """``noise``: standard deviation of the Gaussian noise on every pixel and channel, white being 1.

    ``head_depth`` and ``head_width``: the hidden layers of the decoder, which has the form of a projection head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["denoising"] = "denoising"
    noise: float = Field(default=0.1, gt=0, le=1)
    head_depth: int = Field(default=1, ge=0)
    head_width: int = Field(default=512, ge=1)


class Denoising(PretextTask):
    """Mean squared error between each window and its reconstruction from the features of the corrupted crop.

    Pixels count in standard deviations from their channel's mean, both of the crops before training: a decoder that
    says nothing then has a loss near 1 whatever the product, and one learning rate serves all.

    A crop of many windows has one noise; each window is reconstructed whole, from its own features alone. The corrupted
    crop is clamped to [0, 1], as a camera would. There is no other augmentation.

    Attributes:
        decoder: (n, F) -> (n, 3 * patch * patch) standardised pixels, channel after channel, row after row.
    """

    mean: Tensor  # (3, 1, 1)
    deviation: Tensor  # of all channels together

    def __init__(self, configuration: DenoisingConfiguration, dimension: int, geometry: ScanGeometry) -> None:
        super().__init__()
        self.noise = configuration.noise
        self.geometry = geometry
        pixels = CHANNELS * geometry.patch_size**2
        self.decoder = projection_head(dimension, configuration.head_depth, configuration.head_width, pixels)
        self.register_buffer("mean", torch.zeros(CHANNELS, 1, 1))
        self.register_buffer("deviation", torch.ones(()))

    def prepare(self, encoder: Encoder, sample: Callable[[], Tensor]) -> None:
        """Take the mean and the standard deviation of the crops' pixels."""
        crops = torch.cat([sample() for _ in range(SAMPLES)])
        self.mean.copy_(crops.mean(dim=(0, 2, 3))[:, None, None])
        self.deviation.copy_((crops - self.mean).std(correction=0).clamp(min=SMALLEST_DEVIATION))

    def forward(self, encoder: Encoder, crops: Tensor) -> PretextResult:
        """Loss on (B, 3, C, C) crops; for accuracy, the share of the windows' variance that is reconstructed."""
        standard = (crops - self.mean) / self.deviation
        windows = extract_windows(standard, self.geometry).flatten(0, 2).flatten(1)  # (B * h * w, 3 * patch * patch)
        decoded = self.decoder(window_vectors(encoder.features(self.corrupt(crops))))
        loss = F.mse_loss(decoded.float(), windows)
        explained = 1 - loss.detach() / windows.var(correction=0).clamp(min=torch.finfo(torch.float32).eps)
        return PretextResult(loss, explained.clamp(min=0))

    def corrupt(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, C, C) with noise, in [0, 1]."""
        return (crops + self.noise * torch.randn_like(crops)).clamp(0, 1)
