"""``DensePatch``: an un-padded network whose one forward pass over an image is the whole scan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.base import Encoder, FeatureGrid
from models.geometry import ScanGeometry

Embedding = Literal["last", "stages"]
Size = Literal["small", "base", "large"]

WIDTHS: Mapping[Size, int] = {"small": 16, "base": 32, "large": 64}
"""The width of every named size. Depth is one: six 3x3 convolutions at these jumps are what 32 pixels hold."""

# The last block of each stage: pixels between its outputs, and how many of them a window's side holds.
STAGES = {0: (1, 27), 2: (2, 11), 4: (4, 3), 5: (4, 1)}
STEM = 4  # side of the first convolution; the six 3x3 convolutions after it bring the receptive field to 32


class DensePatch(Encoder):
    """Fully convolutional patch encoder: receptive field exactly 32, total stride exactly 4, no padding.

    A stem 4x4 convolution, then two residual blocks at each of jump 1, 2 and 4, each with one 3x3 convolution and a 1x1
    that widens where widths change; the second block of the first two stages strides by 2. Receptive field
    1 + 3 + 2 * 2 + 2 * 4 + 2 * 8 = 32. Since nothing is padded, an output depends on its own window alone:
    ``encoder(image)[..., i, j] == encoder(window(i, j))``.

    The last stage learns what tells the pretext task's classes apart and forgets the rest: a window that is foreign as
    a whole may look normal to it. The earlier stages have kept what colours and textures there are. So an embedding
    is, by default, made of every stage's mean over the window, each part normalised: 15 times the width.

    Args:
        geometry: must have patch size 32 and stride 4.
        width: channels of the first stage; the later ones have 2, 4 and 8 times as many.
        embedding: ``stages`` as above, or ``last``: f / ||f|| alone, as in the paper.

    Raises:
        ValueError: on another patch size or stride, or a width that is not positive.
    """

    def __init__(self, geometry: ScanGeometry, width: int = 32, embedding: Embedding = "stages") -> None:
        super().__init__(geometry)
        default = ScanGeometry()
        if (geometry.patch_size, geometry.stride) != (default.patch_size, default.stride):
            raise ValueError(
                f"DensePatch scans patches of {default.patch_size} at stride {default.stride}, not "
                f"{geometry.patch_size} at stride {geometry.stride}; use another encoder for that geometry"
            )
        if width < 1:
            raise ValueError(f"width must be positive, not {width}")
        self.embedding = embedding
        self.feature_dimension = 8 * width
        self.dimension = (1 + 2 + 4 + 8 if embedding == "stages" else 8) * width
        self.stem = nn.Sequential(nn.Conv2d(3, width, STEM, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(
            ValidBlock(width, width),
            ValidBlock(width, 2 * width, stride=2),
            ValidBlock(2 * width, 2 * width),
            ValidBlock(2 * width, 4 * width, stride=2),
            ValidBlock(4 * width, 4 * width),
            ValidBlock(4 * width, 8 * width),
        )

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 8 * width, h, w)."""
        features: Tensor = self.blocks(self._first(images))
        return features

    def grad_cam_grid(self) -> FeatureGrid:
        """The last block with more than one output a window, 3x3; of an embedding by stages it is one part of four."""
        number = max(number for number, (_, count) in STAGES.items() if count > 1)
        jump, count = STAGES[number]
        return FeatureGrid(self.blocks[number], (self.geometry.patch_size - 1 - jump * (count - 1)) / 2, jump)

    def embeddings(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D, h, w) unit-norm."""
        if self.embedding == "last":
            return super().embeddings(images)
        x = self._first(images)
        parts = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in STAGES:
                parts.append(_window_means(x, *STAGES[number], self.geometry.stride).float())
        return torch.cat([part / _lengths(part).mul(math.sqrt(len(parts))) for part in parts], dim=1)

    def _first(self, images: Tensor) -> Tensor:
        """What the stem makes of images in [0, 1]."""
        x: Tensor = self.stem((images * 2 - 1).to(next(self.parameters()).dtype))
        return x


class ValidBlock(nn.Module):
    """Residual block without padding: 3x3 (strided), 1x1 to the new width; the shortcut is the input's centre crop.

    (B, C, H, W) -> (B, C', (H - 3) // stride + 1, (W - 3) // stride + 1)
    """

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=stride, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = (
            nn.Identity()
            if channels == out_channels and stride == 1
            else nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        # The pixels under the 3x3 kernels' middles. A slice is no copy, but its gradient is not channels_last and makes
        # a training step on a CPU take half as long again, so there it is padding by -1.
        centre = F.pad(x, (-1, -1, -1, -1)) if torch.is_grad_enabled() else x[:, :, 1:-1, 1:-1]
        output: Tensor = self.activation(self.residual(x).add_(self.shortcut(centre)))
        return output


def _window_means(x: Tensor, jump: int, count: int, stride: int) -> Tensor:
    """Means over ``count`` by ``count`` outputs, one axis after the other: (B, C, H', W') -> (B, C, h, w)."""
    if count == 1:
        return x
    step = stride // jump
    # Along rows first, which are near each other in memory: half the time.
    return F.avg_pool2d(F.avg_pool2d(x, (1, count), (1, step)), (count, 1), (step, 1))


def _lengths(x: Tensor) -> Tensor:
    """Euclidean lengths (B, 1, h, w) of the vectors of (B, C, h, w), as ``F.normalize`` bounds them."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return lengths.clamp_min(1e-12)
