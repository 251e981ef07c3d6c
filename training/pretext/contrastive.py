"""Contrastive learning (Sohn et al., section 3.1.2, eq. 2), also with distribution augmentation (section 3.1.3)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from models.encoders import Encoder
from models.heads import projection_head, window_vectors
from training.augmentation import view_augmentation
from training.pretext.base import PretextResult, PretextTask

Transform = Literal["hflip", "rot90", "rot180", "rot270", "hflip_rot90", "hflip_rot180", "hflip_rot270"]
"""Turns counter-clockwise, the mirror image, and the mirror image of each turn: all that keeps a square a square."""
TRANSFORMS: dict[Transform, tuple[int, bool]] = {
    "hflip": (0, True),
    "rot90": (1, False),
    "rot180": (2, False),
    "rot270": (3, False),
    "hflip_rot90": (1, True),
    "hflip_rot180": (2, True),
    "hflip_rot270": (3, True),
}
"""Quarter turns, and whether the turned image is mirrored."""


def _distinct(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    if len(set(transforms)) < len(transforms):
        raise ValueError("each transform is named once")
    return transforms


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.2, gt=0, allow_inf_nan=False)
    head_depth: int = Field(default=8, ge=0)
    head_width: int = Field(default=512, ge=1)
    head_outputs: int = Field(default=128, ge=2)
    flip: bool = True


class ContrastiveConfiguration(_Settings):
    """Settings of contrastive learning.

    Attributes:
        temperature: tau of eq. 2.
        head_depth, head_width, head_outputs: the MLP projection head; the paper's is [512 x 8, 128].
        flip: whether the horizontal flip is in the view augmentation A.
    """

    name: Literal["contrastive"] = "contrastive"


class DistributionAugmentedConfiguration(_Settings):
    """Settings of contrastive learning on an augmented distribution.

    Attributes:
        transforms: what the images are joined with; they themselves always are among the union. The default is that of
            the paper's tables (section 3.1.3, and the authors' script for Table 2). On CIFAR-10, section 5.2 found
            hflip, rot90 and hflip_rot90 best.
        temperature, head_depth, head_width, head_outputs: as for contrastive learning.
        flip: likewise; with a mirror image among the transforms it never is.
    """

    name: Literal["distribution_augmented"] = "distribution_augmented"
    transforms: Annotated[tuple[Transform, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        "rot90",
        "rot180",
        "rot270",
    )


class Contrastive(PretextTask):
    """Tells two views A(x), A'(x) of an instance from the views of the others in the batch: ``info_nce``.

    With distribution augmentation the instances are those of the union of the images and their transformed copies: a
    copy is an instance of its own, and a negative of its original. As in the authors' script the union is made first
    and batches are drawn from it, so a batch of 32 holds 32 instances, each of a transform drawn at random, and not 32
    images with all their copies. What changes the distribution must not be a view: with a mirror image among the
    transforms, A flips no more.
    """

    def __init__(
        self,
        configuration: ContrastiveConfiguration | DistributionAugmentedConfiguration,
        dimension: int,
        crop_size: int,
    ) -> None:
        super().__init__()
        self.temperature = configuration.temperature
        self.transforms: tuple[Transform, ...] = ()
        if isinstance(configuration, DistributionAugmentedConfiguration):
            self.transforms = configuration.transforms
        mirrored = any(TRANSFORMS[name][1] for name in self.transforms)
        self.augment = view_augmentation(crop_size, flip=configuration.flip and not mirrored)
        # No bias, as in the authors' code: outputs are normalised, and a bias would grow until all point one way.
        self.head = projection_head(
            dimension, configuration.head_depth, configuration.head_width, configuration.head_outputs, bias=False
        )

    def forward(self, encoder: Encoder, crops: Tensor) -> PretextResult:
        """Loss on (B, 3, C, C) crops, and how often view 1 is nearest to its own view 2."""
        with torch.no_grad():
            instances = self.draw_instances(crops)
            views = torch.cat([self.augment(instances), self.augment(instances)])
        # One pass, so that batch norm sees both views alike.
        first, second = self.head(window_vectors(encoder.features(views))).chunk(2)
        return info_nce(first, second, self.temperature)

    def draw_instances(self, crops: Tensor) -> Tensor:
        """Each crop as it is or transformed, all of them equally likely: (B, 3, C, C) -> the same."""
        if not self.transforms:
            return crops
        copies = torch.stack([crops, *(_transformed(crops, name) for name in self.transforms)])  # (K, B, 3, C, C)
        chosen = torch.randint(len(copies), (len(crops),), device=crops.device)
        return copies[chosen, torch.arange(len(crops), device=crops.device)]


def info_nce(first: Tensor, second: Tensor, temperature: float) -> PretextResult:
    """Mean over i of -log(exp(z_i . z'_i / tau) / sum_j exp(z_i . z'_j / tau)), z and z' normalised (eq. 2).

    One direction, as in the paper: view 1 against every view 2 of the batch, its own among them; views 1 are no
    negatives of each other.

    Args:
        first: (B, D) outputs of the projection head for view 1, of any length.
        second: (B, D) for view 2, in the same order.
        temperature: tau.

    Returns:
        The loss, and the share of view 1 whose most similar view 2 is its own.
    """
    similarity = similarities(first, second) / temperature  # (B, B)
    own = torch.arange(len(first), device=first.device)
    return PretextResult(F.cross_entropy(similarity, own), (similarity.argmax(dim=1) == own).float().mean())


def similarities(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of (n, D) and (m, D) vectors, in float32 at least, whatever autocast would do: (n, m)."""
    with torch.autocast(first.device.type, enabled=False):
        precision = torch.promote_types(first.dtype, torch.float32)
        return F.normalize(first.to(precision), dim=1) @ F.normalize(second.to(precision), dim=1).T


def _transformed(crops: Tensor, name: Transform) -> Tensor:
    turns, mirrored = TRANSFORMS[name]
    turned = torch.rot90(crops, turns, dims=(2, 3))
    return turned.flip(3) if mirrored else turned
