"""From a map of window scores to the image score's window and a heatmap (Sohn et al., section 4.2 and B)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.geometry import Box, ScanGeometry
from models.region_of_interest import RegionOfInterest

PATCHES_PER_SIGMA = 4  # a quarter of the patch, 8 pixels of 32; the paper gives no sigma


def peak_window(
    score_map: NDArray[np.float32], geometry: ScanGeometry, content: Box, region: RegionOfInterest | None = None
) -> tuple[int, int]:
    """Spatial max-pool: the window (row, column) with the highest score, which is the image score.

    Args:
        score_map: (h, w) of one image.
        geometry: the scan's.
        content: where the image lies in the square; only its windows count (``ScanGeometry.windows_of``).
        region: of them, only those in the region of interest; all where there is none.
    """
    if region is not None:
        inside = np.where(region.windows(geometry, content), score_map, -np.inf)
        i, j = divmod(int(inside.argmax()), inside.shape[1])
        return i, j
    rows, columns = geometry.windows_of(content)
    counted = score_map[rows.start : rows.stop, columns.start : columns.stop]
    i, j = divmod(int(counted.argmax()), len(columns))
    return rows[i], columns[j]


class GaussianUpsampler:
    """Spreads each window's score over its pixels by a Gaussian: a transposed convolution at the scan's stride.

    The result is divided by the transposed convolution of ones, so that it is a weighted mean of the scores of the
    windows around: borders do not fade, and a constant map stays constant. The Gaussian is a product of one along the
    rows and one along the columns, and so is the whole: two small matrix products, many times faster.

    Args:
        geometry: the scan's; the kernel is one patch wide.
        sigma: standard deviation of the Gaussian in pixels, at least 2; None for a quarter of the patch.
        device: where the maps live.

    Raises:
        ValueError: if sigma is below 2, or pixels stay without weight: sigma too narrow for the patch, or a stride
            wider than the patch.
    """

    def __init__(self, geometry: ScanGeometry, sigma: float | None = None, device: torch.device | str = "cpu") -> None:
        sigma = geometry.patch_size / PATCHES_PER_SIGMA if sigma is None else sigma
        if not sigma >= 2:
            raise ValueError(f"sigma must be at least 2 pixels, not {sigma}")
        self.geometry = geometry
        offsets = torch.arange(geometry.patch_size, device=device) - (geometry.patch_size - 1) / 2
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
        windows = torch.eye(geometry.grid_size, device=device)[:, None]
        spread = F.conv_transpose1d(windows, weights[None, None], stride=geometry.stride)[:, 0].T  # (scanned, windows)
        total = spread.sum(dim=1, keepdim=True)
        if total.min().square() < torch.finfo(total.dtype).tiny:
            raise ValueError(
                f"sigma {sigma} and stride {geometry.stride} leave pixels without weight in float32 for patches of "
                f"{geometry.patch_size}; take a wider sigma or a smaller stride"
            )
        means = spread / total
        edge = means[-1:].expand(geometry.unscanned, -1)
        self._means = torch.cat([means, edge])  # (H, h): how much each window along an axis counts for each pixel

    def __call__(self, score_maps: Tensor) -> Tensor:
        """(B, h, w) scores -> (B, H, W) anomaly maps; edge pixels that no window covers repeat their neighbour."""
        return self._means @ score_maps @ self._means.T
