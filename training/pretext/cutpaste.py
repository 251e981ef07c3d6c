"""CutPaste (Li, Sohn, Yoon, Pfister: CutPaste, CVPR 2021): normal, pasted patch or pasted scar.

The loss is the paper's, cross-entropy over the windows as they are and with something pasted (its eq. 1); what is
pasted, and where, is not: see ``CutPaste``.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from models.encoders import Encoder
from models.geometry import ScanGeometry
from models.heads import projection_head, window_vectors
from training.augmentation import colour_jitter
from training.pretext.base import PretextResult, PretextTask

NORMAL, PATCH, SCAR = range(3)
IGNORED = -100  # cross_entropy's own default
KINDS = {"binary": (NORMAL, PATCH), "scar": (NORMAL, SCAR), "three_way": (NORMAL, PATCH, SCAR)}  # classes of each task


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 < limits[0] <= limits[1] < math.inf:
        raise ValueError("a range is (least, most), both above 0 and finite, the least first")
    return limits


def _at_most_one(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[1] > 1:
        raise ValueError("an opacity is at most 1")
    return limits


Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class CutPasteConfiguration(BaseModel):
    """Settings of CutPaste. Ranges are (least, most); lengths and areas are fractions of the patch's.

    Attributes:
        task: ``binary`` tells pasted patches from normal windows, ``scar`` pasted scars, ``three_way`` all three apart.
        head_depth, head_width: the MLP projection head.
        patch_side: sides of a pasted patch.
        scar_width, scar_length: sides of a pasted scar.
        light: jitter of the whole crop's brightness, contrast and saturation, for parts whose lighting varies.
        jitter, hue: colour jitter of the pasted content.
        opacity: of the pasted content; faint pastes teach the encoder to see slight deviations.
        visible: smallest mean difference over the channels, in [0, 1], that counts a pixel as changed.
        changed: smallest share of a window that must be changed to call the window pasted; less but some: undecided.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["cutpaste"] = "cutpaste"
    task: Literal["binary", "scar", "three_way"] = "three_way"
    head_depth: int = Field(default=1, ge=0)
    head_width: int = Field(default=256, ge=1)
    patch_side: Range = (0.12, 0.65)
    scar_width: Range = (0.05, 0.2)
    scar_length: Range = (0.25, 1.0)
    light: float = Field(default=0.1, ge=0, le=1)
    jitter: float = Field(default=0.3, ge=0, le=0.5)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    opacity: Annotated[Range, AfterValidator(_at_most_one)] = (0.15, 1.0)
    visible: float = Field(default=0.025, ge=0, le=1)
    changed: float = Field(default=0.005, gt=0, le=1)


class CutPaste(PretextTask):
    """Classifies each window as normal, with a pasted patch, or with a pasted scar; each is drawn equally often.

    What is pasted is cut from another crop, colour-jittered, turned by any angle, and kept only where it visibly
    differs from what it covers, so that a label never claims a change that cannot be seen. A crop of many windows
    gives each window the label of what lies inside it; a geometry of one window is CutPaste at image level.
    """

    def __init__(
        self, configuration: CutPasteConfiguration, dimension: int, crop_size: int, geometry: ScanGeometry
    ) -> None:
        super().__init__()
        self.configuration = configuration
        self.geometry = geometry
        self.crop_size = crop_size
        self.augment = colour_jitter(configuration.light)
        self.jitter = colour_jitter(configuration.jitter, hue=configuration.hue)
        self.kinds = KINDS[configuration.task]
        self.head = projection_head(dimension, configuration.head_depth, configuration.head_width, len(self.kinds))

    def forward(self, encoder: Encoder, crops: Tensor) -> PretextResult:
        """Loss and accuracy of the classifier on (B, 3, C, C) crops."""
        with torch.no_grad():
            pasted, labels = self.paste(self.augment(crops))
        logits = self.head(window_vectors(encoder.features(pasted)))
        flat = labels.flatten()
        counted = (flat != IGNORED).sum().clamp(min=1)  # a batch may be undecided throughout: 0, not 0 / 0
        loss = F.cross_entropy(logits, flat, reduction="sum") / counted
        return PretextResult(loss, (logits.argmax(dim=1) == flat).sum() / counted)

    def paste(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Paste foreign content into crops: into two thirds, or a half where the task has two classes.

        Args:
            crops: (B, 3, C, C) in [0, 1].

        Returns:
            The crops (B, 3, C, C) and the labels (B, h, w) of their windows: the class, 0 for normal, or -100 for
            undecided.
        """
        label = torch.randint(len(self.kinds), (len(crops), 1, 1), device=crops.device)
        kind = torch.tensor(self.kinds, device=crops.device)[label]
        mask, content = self._foreign(crops, kind)
        difference = (content - crops).abs().mean(dim=1)  # (B, C, C)
        changed = mask & (difference > self.configuration.visible) & (kind != NORMAL)
        pasted = torch.where(changed[:, None], content, crops)
        return pasted, self._labels(changed, label)

    def _foreign(self, crops: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        """A turned rectangle (B, C, C), long and thin for scars, and the content (B, 3, C, C) to show through it."""
        batch, size = len(crops), self.crop_size

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(batch, 1, 1, device=crops.device).uniform_(low, high)

        def log_uniform(limits: tuple[float, float]) -> Tensor:
            return uniform(math.log(limits[0]), math.log(limits[1])).exp() * self.geometry.patch_size

        settings, scar = self.configuration, kind == SCAR
        length = torch.where(scar, log_uniform(settings.scar_length), log_uniform(settings.patch_side))
        width = torch.where(scar, log_uniform(settings.scar_width), log_uniform(settings.patch_side))
        position = torch.arange(size, device=crops.device) + 0.5
        x = position[None, None, :] - uniform(0, size)  # (B, 1, C), from the rectangle's centre
        y = position[None, :, None] - uniform(0, size)  # (B, C, 1)
        u, v = _turned(x, y, uniform(0, math.pi))
        mask = (u.abs() <= length / 2) & (v.abs() <= width / 2)
        source_u, source_v = _turned(x, y, uniform(0, 2 * math.pi))
        grid = torch.stack([source_u + uniform(0, size), source_v + uniform(0, size)], dim=3)  # (B, C, C, 2) in pixels
        # Every crop from another one: pasted onto itself it would show nothing but the jitter.
        sources = self.jitter(crops.roll(int(torch.randint(1, batch, ())), dims=0))
        content = F.grid_sample(sources, grid * (2 / size) - 1, padding_mode="reflection", align_corners=False)
        opacity = uniform(*settings.opacity)[:, None]
        return mask, torch.lerp(crops, content, opacity)

    def _labels(self, changed: Tensor, label: Tensor) -> Tensor:
        fraction = F.avg_pool2d(changed[:, None].float(), self.geometry.patch_size, self.geometry.stride)[:, 0]
        labels = torch.where(fraction >= self.configuration.changed, label, IGNORED)
        return torch.where(fraction == 0, NORMAL, labels)


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of (x, y) in axes turned by ``angle``: broadcasts to (B, C, C)."""
    cosine, sine = angle.cos(), angle.sin()
    return x * cosine + y * sine, y * cosine - x * sine
