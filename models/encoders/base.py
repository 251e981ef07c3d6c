"""What every encoder promises: one unit-norm embedding per window of the scan."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.geometry import ScanGeometry


class FeatureGrid(NamedTuple):
    """Where features lie: ``layer`` gives (B, C, h', w'), cell (k, l) centred on pixel ``first + step * (k, l)``."""

    layer: nn.Module
    first: float
    step: int


class Encoder(nn.Module):
    """Maps images to patch embeddings.

    Subclasses set the dimensions and implement ``features``. The representation used at test time is the input of the
    projection head, normalised: f / ||f|| (Sohn et al., section 3.1); a subclass that embeds otherwise says so.
    Converted to half precision, an encoder takes the same images and gives features in it; embeddings are normalised
    in float32 whatever the precision.

    Attributes:
        geometry: patch size and stride that the encoder was built for; its image size does not bind it.
        dimension: length D of an embedding.
        feature_dimension: length F of ``features``.
        independent_windows: whether an embedding depends on its window alone, so that the scan is the run window by
            window.
    """

    dimension: int
    feature_dimension: int
    independent_windows: bool = True

    def __init__(self, geometry: ScanGeometry) -> None:
        super().__init__()
        self.geometry = geometry

    def initialise(self) -> None:
        """Begin from weights that were learned elsewhere, for an encoder that has such; called before stage 1."""

    def features(self, images: Tensor) -> Tensor:
        """f before normalisation, what a projection head takes.

        Args:
            images: (B, 3, H, W) float in [0, 1], H and W at least the patch size.

        Returns:
            (B, F, h, w), h and w as ``geometry.windows`` counts them.
        """
        raise NotImplementedError

    def grad_cam_grid(self) -> FeatureGrid:
        """The last features that still have space: within a window, or the image if windows are not independent."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Unit-norm embeddings (B, D, h, w) of images (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: if an edge of the images is shorter than a patch.
        """
        for length in images.shape[2:]:
            self.geometry.windows(length)
        return self.embeddings(images)

    def embeddings(self, images: Tensor) -> Tensor:
        """``forward`` without its check."""
        return F.normalize(self.features(images).float(), dim=1)


def as_input(images: Tensor) -> Tensor:
    """Images as an encoder takes them: (B, H, W, 3) uint8 -> (B, 3, H, W) float in [0, 1], on the same device."""
    return images.permute(0, 3, 1, 2).float() / 255


def extract_windows(images: Tensor, geometry: ScanGeometry) -> Tensor:
    """Every window of every image as an image of its own: (B, 3, H, W) -> (B, h, w, 3, patch, patch), a view."""
    size, step = geometry.patch_size, geometry.stride
    return images.unfold(2, size, step).unfold(3, size, step).permute(0, 2, 3, 1, 4, 5)


def encode_per_window(encoder: Encoder, images: Tensor, batch_size: int = 1024) -> Tensor:
    """The scan, window by window: the slow definition that a scan of independent windows must equal.

    Args:
        encoder: in evaluation mode, or the batch norm sees each batch of windows by itself.
        images: (B, 3, H, W) in [0, 1].
        batch_size: windows encoded together.

    Returns:
        (B, D, h, w) unit-norm embeddings.
    """
    windows = extract_windows(images, encoder.geometry)
    batch, height, width = windows.shape[:3]
    flat = windows.reshape(-1, *windows.shape[3:])  # (B * h * w, 3, patch, patch)
    embeddings = torch.cat([encoder(part)[:, :, 0, 0] for part in torch.split(flat, batch_size)])
    return embeddings.view(batch, height, width, -1).permute(0, 3, 1, 2).contiguous()
