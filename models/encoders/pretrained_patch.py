"""``PretrainedPatch``: an ImageNet backbone's mid-level features, averaged over each window."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Literal, NamedTuple, Self
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import create_feature_extractor

from models.encoders.base import Encoder, FeatureGrid
from models.geometry import ScanGeometry

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

Backbone = Literal["mobilenet_v2", "resnet18", "wide_resnet50_2"]


class Level(NamedTuple):
    """One of a backbone's feature maps: the module that makes it, its channels, pixels between its outputs."""

    module: str
    channels: int
    jump: int


LEVELS: dict[Backbone, tuple[Level, Level]] = {
    "mobilenet_v2": (Level("features.6", 32, 8), Level("features.13", 96, 16)),
    "resnet18": (Level("layer2", 128, 8), Level("layer3", 256, 16)),
    "wide_resnet50_2": (Level("layer2", 512, 8), Level("layer3", 1024, 16)),
}
"""The two middle scales: finer ones know edges alone, coarser ones ImageNet's classes."""


class WeightsError(RuntimeError):
    """The weights of a backbone cannot be had; the message says which file, from where, and where to put it."""


class PretrainedPatch(Encoder):
    """Features of a torchvision backbone at jump 8 and 16, each averaged over the window and normalised.

    The backbone runs once over the whole image and pads its edges with zeros, so an embedding also depends on what
    surrounds its window: the scan is NOT the run window by window, and a crop of one patch shows the network less than
    a scan does. Only windows as large as the image are free of that.

    Weights are ImageNet's (torchvision's IMAGENET1K_V1), loaded by ``initialise``. Up to the first of the two levels
    they stay as they are, and batch norm keeps its statistics; the layers between the two levels are trained. So it is
    in Reiss and Hoshen's script for the mean-shifted contrastive loss.

    Args:
        geometry: any.
        backbone: which network.
    """

    independent_windows = False

    def __init__(self, geometry: ScanGeometry, backbone: Backbone = "mobilenet_v2") -> None:
        super().__init__(geometry)
        self.name: Backbone = backbone
        self.levels = LEVELS[backbone]
        self.dimension = self.feature_dimension = sum(level.channels for level in self.levels)
        self.backbone = create_feature_extractor(
            get_model(backbone, weights=None), [level.module for level in self.levels]
        )
        self.last_level = nn.Identity()  # a place to look at the features of the last level
        names = [name for name, _ in self.backbone.named_parameters()]  # in the order of their use
        first_level = max(number for number, name in enumerate(names) if name.startswith(f"{self.levels[0].module}."))
        for name in names[: first_level + 1]:
            self.backbone.get_parameter(name).requires_grad_(False)
        self.train()

    def initialise(self) -> None:
        """Load ImageNet's weights from torch's cache, or download them into it.

        Raises:
            WeightsError: if they are not there and cannot be downloaded, or the file is damaged.
        """
        weights = get_model_weights(self.name)["IMAGENET1K_V1"]
        file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
        own = self.backbone.state_dict()
        try:
            state = weights.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
            self.backbone.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
        except OSError as error:
            raise WeightsError(
                f"the weights of {self.name} are not in {file}, and {weights.url} cannot be fetched ({error}); "
                "fetch it on a machine with a network and put it there, or point TORCH_HOME at a folder whose "
                f"hub/checkpoints holds {file.name}"
            ) from error
        except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise WeightsError(
                f"{file} is damaged or not the weights of {self.name}; remove it, and it is fetched again from "
                f"{weights.url}"
            ) from error

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the backbone: its batch norm keeps ImageNet's statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, F, h, w)."""
        return torch.cat(self._levels(images), dim=1)

    def embeddings(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D, h, w) unit-norm."""
        parts = [F.normalize(part, dim=1) for part in self._levels(images)]
        return torch.cat(parts, dim=1) / math.sqrt(len(parts))

    def grad_cam_grid(self) -> FeatureGrid:
        """The coarser of the two levels; see ``window_weights``."""
        return FeatureGrid(self.last_level, 0, self.levels[-1].jump)

    def _levels(self, images: Tensor) -> list[Tensor]:
        # Filled where the images are: what is copied to a GPU cannot be recorded (``models.inference.CudaGraphs``).
        mean, deviation = (
            torch.cat([images.new_full((1, 1, 1), value) for value in values])
            for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
        )
        standardized = (images - mean) / deviation  # torchvision's function cannot be traced
        maps: dict[str, Tensor] = self.backbone(standardized.to(next(self.backbone.parameters()).dtype))
        maps[self.levels[-1].module] = self.last_level(maps[self.levels[-1].module])
        means = []
        for level in self.levels:
            x = maps[level.module].float()  # (B, C, ceil(H / jump), ceil(W / jump))
            rows = window_weights(images.shape[2], x.shape[2], level.jump, self.geometry, x.device)
            columns = window_weights(images.shape[3], x.shape[3], level.jump, self.geometry, x.device)
            means.append(rows @ x @ columns.T)  # (B, C, h, w)
        return means


def window_weights(
    length: int, cells: int, jump: int, geometry: ScanGeometry, device: torch.device | str = "cpu"
) -> Tensor:
    """How much each output of a strided network counts in the mean over each window, along one axis.

    Output k is centred on pixel ``jump * k``: every strided layer of these backbones pads by half its kernel. Between
    centres the map is taken as linear, beyond the last as constant; so a window at any stride gets the mean over its
    own pixels, without the half-output shift of a plain resize.

    Args:
        length: of the image's edge, in pixels.
        cells: outputs along it.
        jump: pixels between them.
        device: where the weights are made.

    Returns:
        (windows, cells) float32, rows sum to 1.
    """
    position = (torch.arange(length, device=device) / jump).clamp(max=cells - 1)  # of every pixel, in outputs
    shares = (1 - (position[:, None] - torch.arange(cells, device=device)).abs()).clamp(min=0)  # (length, cells)
    return shares.unfold(0, geometry.patch_size, geometry.stride).mean(dim=2)
