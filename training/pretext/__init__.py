"""Pretext tasks: self-supervised objectives. Each has a name, under which configurations know it."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import BaseModel, Field

from models.encoders import Encoder
from training.pretext.base import PretextResult, PretextTask
from training.pretext.contrastive import (
    Contrastive,
    ContrastiveConfiguration,
    DistributionAugmentedConfiguration,
)
from training.pretext.cutpaste import CutPaste, CutPasteConfiguration
from training.pretext.denoising import Denoising, DenoisingConfiguration
from training.pretext.mean_shifted import MeanShifted, MeanShiftedConfiguration
from training.pretext.none import NoneConfiguration
from training.pretext.rotation import Rotation, RotationConfiguration, RotNetConfiguration

__all__ = [
    "PRETEXTS",
    "Contrastive",
    "ContrastiveConfiguration",
    "CutPaste",
    "CutPasteConfiguration",
    "Denoising",
    "DenoisingConfiguration",
    "DistributionAugmentedConfiguration",
    "InstanceConfiguration",
    "MeanShifted",
    "MeanShiftedConfiguration",
    "NoneConfiguration",
    "PretextConfiguration",
    "PretextResult",
    "PretextTask",
    "RotNetConfiguration",
    "Rotation",
    "RotationConfiguration",
    "RotationTasks",
    "create_pretext",
]

InstanceConfiguration = ContrastiveConfiguration | DistributionAugmentedConfiguration | MeanShiftedConfiguration
"""Tasks that tell crops from each other: they take one window a crop."""

RotationTasks = RotationConfiguration | RotNetConfiguration
"""Tasks that train the head which the rotation classifier scores with."""

AnyPretext = InstanceConfiguration | CutPasteConfiguration | DenoisingConfiguration | NoneConfiguration | RotationTasks
PretextConfiguration = Annotated[AnyPretext, Field(discriminator="name")]

PRETEXTS: dict[str, type[BaseModel]] = {kind.model_fields["name"].default: kind for kind in get_args(AnyPretext)}
"""The configuration of every task, by the task's name."""


def create_pretext(configuration: AnyPretext, *, encoder: Encoder, crop_size: int) -> PretextTask:
    """The task that the configuration describes, for such an encoder and crops (B, 3, crop_size, crop_size)."""
    features, geometry = encoder.feature_dimension, encoder.geometry
    match configuration:
        case ContrastiveConfiguration() | DistributionAugmentedConfiguration():
            return Contrastive(configuration, features, crop_size)
        case CutPasteConfiguration():
            return CutPaste(configuration, features, crop_size, geometry)
        case DenoisingConfiguration():
            return Denoising(configuration, features, geometry)
        case MeanShiftedConfiguration():
            return MeanShifted(configuration, encoder.dimension, crop_size)
        case NoneConfiguration():
            return PretextTask()
        case RotationConfiguration() | RotNetConfiguration():
            return Rotation(configuration, features, crop_size)
