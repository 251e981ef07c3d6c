"""``DetectorGraph``: a detector's whole computation as one torch module, for the engines that take such a graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.densities import RotationClassifier
from models.densities.traceable import traceable
from models.encoders import as_input
from models.region_of_interest import RegionOfInterest
from models.scan import Ensemble, Scan

INPUT = "images"
OUTPUTS = ("score_map", "image_score", "anomaly_map", "mean_embedding")


class DetectorGraph(nn.Module):
    """Inputs of a scan to all that is seen in them; a straight line of torch's operations.

    The image score is that of an image which fills the square. Of a letter-boxed one the padding's windows count as
    well: there the peak is to be taken over the windows of the image alone (``models.heatmap.peak_window``).

    Args:
        scan: fitted, on the CPU.
        region: where windows count for the image score; everywhere if None.

    Raises:
        NotTraceable: the density cannot be written so.
    """

    counted: Tensor | None

    def __init__(self, scan: Scan | Ensemble, region: RegionOfInterest | None = None) -> None:
        super().__init__()
        self.geometry = scan.configuration.geometry
        self.members = nn.ModuleList(_Member(member) for member in scan.members)
        self.upsample = scan.members[0].upsample
        counted = None
        if region is not None:
            inside = region.windows(self.geometry, self.geometry.square)
            counted = torch.zeros(inside.shape).masked_fill(~torch.from_numpy(inside.copy()), -torch.inf)
        self.register_buffer("counted", counted)  # (h, w): 0 for a window that counts

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All float32; scores: higher is more anomalous.

        Args:
            images: (B, S, S, 3) uint8 RGB, as ``models.images.place_image`` makes them.

        Returns:
            score_map (B, h, w), image_score (B,), anomaly_map (B, S, S), and mean_embedding (B, D), of an ensemble the
            members' side by side: what ``models.validity`` compares whole images by, beside their layout.
        """
        pixels = as_input(images)
        score_maps, means = zip(*(member(pixels) for member in self.members), strict=True)
        score_map = score_maps[0] if len(score_maps) == 1 else torch.stack(score_maps).mean(dim=0)
        counted = score_map if self.counted is None else score_map + self.counted
        return score_map, counted.amax(dim=(1, 2)), self.upsample(score_map), torch.cat(means, dim=1)


class _Member(nn.Module):
    """One scan of an ensemble: pixels (B, 3, S, S) -> its score map (B, h, w) and mean embedding (B, D)."""

    def __init__(self, scan: Scan) -> None:
        super().__init__()
        self.encoder = scan.encoder
        self.grid_size = scan.configuration.geometry.grid_size
        self.rotation = scan.density if isinstance(scan.density, RotationClassifier) else None
        self.density = None if self.rotation else traceable(scan.density)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.encoder(pixels)
        if self.rotation is not None:
            score_map = self.rotation.window_scores(self.encoder, pixels)
        else:
            assert self.density is not None
            queries = embeddings.flatten(2).transpose(1, 2)  # (B, h * w, D)
            score_map = self.density(queries).unflatten(1, (self.grid_size, self.grid_size))
        return -score_map, embeddings.mean(dim=(2, 3))
