"""``ResNet18Patch``: the paper's encoder, run on every window by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from models.encoders.base import Encoder, FeatureGrid, extract_windows
from models.geometry import ScanGeometry

WINDOWS_PER_BATCH = 1024  # bounds the memory of a scan: about 1 GB of activations in float32


class ResNet18Patch(Encoder):
    """ResNet-18 with the CIFAR stem (3x3, stride 1, no max-pool), widths 64-128-256-512, global average pool; D = 512.

    It zero-pads inside each patch, so windows share nothing and the scan runs it on all of them (1.8 TMAC for a
    256x256 image): the reference, for a GPU. Source: Sohn et al., section 3.1 and appendix A.4.

    Args:
        geometry: any; a patch as large as the image makes it a network on whole images.
        stem: ``cifar`` as above; ``imagenet`` for ResNet-18's own first layers (7x7, stride 2, max-pool), which make a
            patch of 256 pixels 15 times cheaper.
    """

    dimension = feature_dimension = 512

    def __init__(self, geometry: ScanGeometry, stem: Literal["cifar", "imagenet"] = "cifar") -> None:
        super().__init__(geometry)
        self.backbone = resnet18(weights=None)
        self._jump = 8 if stem == "cifar" else 32  # pixels between the last stage's outputs
        if stem == "cifar":
            self.backbone.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            self.backbone.maxpool = nn.Identity()
        self.backbone.fc = nn.Identity()

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 512, h, w)."""
        if torch.compiler.is_exporting():
            # The graph holds for any number of images, so for no number of parts of all their windows.
            return torch.cat([self._features(band, at_once=None) for band in self._bands(images)], dim=2)
        # Training sends one window an image, and batch norm must see the whole batch at once.
        return self._features(images, at_once=None if self.training else WINDOWS_PER_BATCH)

    def _features(self, images: Tensor, at_once: int | None) -> Tensor:
        """As ``features``, of so many windows at once; None for all."""
        windows = extract_windows((images * 2 - 1).to(self.backbone.conv1.weight.dtype), self.geometry)
        batch, height, width = windows.shape[:3]
        flat = windows.reshape(-1, *windows.shape[3:])  # (B * h * w, 3, patch, patch)
        parts = [flat] if at_once is None else torch.split(flat, at_once)
        features = torch.cat([self.backbone(part) for part in parts])
        return features.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def _bands(self, images: Tensor) -> Iterator[Tensor]:
        """Images (B, 3, H, W) in bands of whole rows of windows, as many as make a batch of one image's."""
        step, patch = self.geometry.stride, self.geometry.patch_size
        height, width = (self.geometry.windows(length) for length in images.shape[2:])
        rows = max(1, WINDOWS_PER_BATCH // width)
        for first in range(0, height, rows):
            yield images[:, :, step * first : step * (min(first + rows, height) - 1) + patch]

    def grad_cam_grid(self) -> FeatureGrid:
        """The last stage; every strided layer pads by half its kernel, so its first output is centred on pixel 0."""
        return FeatureGrid(self.backbone.layer4, 0, self._jump)
