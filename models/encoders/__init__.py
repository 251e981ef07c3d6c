"""Encoders: image to one embedding per window. Each has a name, under which configurations and artifacts know it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from models.encoders.base import Encoder, as_input, encode_per_window, extract_windows
from models.encoders.dense_patch import WIDTHS, DensePatch, Embedding, Size
from models.encoders.pretrained_patch import Backbone, PretrainedPatch, WeightsError
from models.encoders.resnet18_patch import ResNet18Patch
from models.geometry import ScanGeometry

__all__ = [
    "ENCODERS",
    "WIDTHS",
    "DensePatch",
    "DensePatchConfiguration",
    "Encoder",
    "EncoderConfiguration",
    "PretrainedPatch",
    "PretrainedPatchConfiguration",
    "ResNet18Patch",
    "ResNet18PatchConfiguration",
    "WeightsError",
    "as_input",
    "create_encoder",
    "encode_per_window",
    "extract_windows",
]


class DensePatchConfiguration(BaseModel):
    """``width``: channels of the first stage. ``embedding``: of the last stage alone, or of all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["dense_patch"] = "dense_patch"
    width: int = Field(default=WIDTHS["base"], ge=1, le=512)
    embedding: Embedding = "stages"

    @property
    def size(self) -> Size | None:
        """The name of this width; None where it has none."""
        return next((size for size, width in WIDTHS.items() if width == self.width), None)


class PretrainedPatchConfiguration(BaseModel):
    """``backbone``: a network of torchvision's, with its ImageNet weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["pretrained_patch"] = "pretrained_patch"
    backbone: Backbone = "mobilenet_v2"


class ResNet18PatchConfiguration(BaseModel):
    """``stem``: the paper's for patches of 32 and 64 pixels, or ImageNet's (7x7, stride 2, pooled) for larger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["resnet18_patch"] = "resnet18_patch"
    stem: Literal["cifar", "imagenet"] = "cifar"


AnyEncoder = DensePatchConfiguration | PretrainedPatchConfiguration | ResNet18PatchConfiguration
EncoderConfiguration = Annotated[AnyEncoder, Field(discriminator="name")]

ENCODERS: dict[str, type[BaseModel]] = {kind.model_fields["name"].default: kind for kind in get_args(AnyEncoder)}
"""The configuration of every encoder, by the encoder's name."""


def create_encoder(configuration: AnyEncoder, geometry: ScanGeometry) -> Encoder:
    """An encoder with random weights, as the configuration describes it."""
    match configuration:
        case DensePatchConfiguration():
            return DensePatch(geometry, configuration.width, configuration.embedding)
        case PretrainedPatchConfiguration():
            return PretrainedPatch(geometry, configuration.backbone)
        case ResNet18PatchConfiguration():
            return ResNet18Patch(geometry, configuration.stem)
