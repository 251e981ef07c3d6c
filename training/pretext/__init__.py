"""Pretext tasks: self-supervised objectives. Each has a name, under which configurations know it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from models.geometry import ScanGeometry
from training.pretext.base import PretextResult, PretextTask
from training.pretext.contrastive import (
    Contrastive,
    ContrastiveConfiguration,
    DistributionAugmentedConfiguration,
)
from training.pretext.cutpaste import CutPaste, CutPasteConfiguration
from training.pretext.rotation import Rotation, RotationConfiguration

__all__ = [
    "Contrastive",
    "ContrastiveConfiguration",
    "CutPaste",
    "CutPasteConfiguration",
    "DistributionAugmentedConfiguration",
    "InstanceConfiguration",
    "PretextConfiguration",
    "PretextResult",
    "PretextTask",
    "Rotation",
    "RotationConfiguration",
    "create_pretext",
]

InstanceConfiguration = ContrastiveConfiguration | DistributionAugmentedConfiguration
"""Tasks that tell crops from each other: they take one window a crop."""

AnyPretext = InstanceConfiguration | CutPasteConfiguration | RotationConfiguration
PretextConfiguration = Annotated[AnyPretext, Field(discriminator="name")]


def create_pretext(configuration: AnyPretext, *, dimension: int, crop_size: int, geometry: ScanGeometry) -> PretextTask:
    """The task that the configuration describes, for features (B, dimension, h, w) of (B, 3, crop_size, crop_size)."""
    match configuration:
        case ContrastiveConfiguration() | DistributionAugmentedConfiguration():
            return Contrastive(configuration, dimension, crop_size)
        case CutPasteConfiguration():
            return CutPaste(configuration, dimension, crop_size, geometry)
        case RotationConfiguration():
            return Rotation(configuration, dimension, crop_size)
