"""One-class classifiers on embeddings. Each has a name, under which configurations and artifacts know it."""

from __future__ import annotations

from typing import Annotated, get_args

import torch
from pydantic import BaseModel, Field

from models.densities.base import Density
from models.densities.gaussian import (
    GaussianDensity,
    GaussianDensityConfiguration,
    GaussianMixture,
    GaussianMixtureConfiguration,
)
from models.densities.kde import KernelDensity, KernelDensityConfiguration
from models.densities.kernel import paper_gamma
from models.densities.nearest_neighbours import NearestNeighbours, NearestNeighboursConfiguration
from models.densities.one_class_svm import OneClassSVM, OneClassSVMConfiguration
from models.densities.rotation_classifier import RotationClassifier, RotationClassifierConfiguration

__all__ = [
    "DENSITIES",
    "Density",
    "DensityConfiguration",
    "GaussianDensity",
    "GaussianDensityConfiguration",
    "GaussianMixture",
    "GaussianMixtureConfiguration",
    "KernelDensity",
    "KernelDensityConfiguration",
    "NearestNeighbours",
    "NearestNeighboursConfiguration",
    "OneClassSVM",
    "OneClassSVMConfiguration",
    "RotationClassifier",
    "RotationClassifierConfiguration",
    "create_density",
    "paper_gamma",
]

AnyDensity = (
    KernelDensityConfiguration
    | OneClassSVMConfiguration
    | GaussianDensityConfiguration
    | GaussianMixtureConfiguration
    | NearestNeighboursConfiguration
    | RotationClassifierConfiguration
)
DensityConfiguration = Annotated[AnyDensity, Field(discriminator="name")]

DENSITIES: dict[str, type[BaseModel]] = {kind.model_fields["name"].default: kind for kind in get_args(AnyDensity)}
"""The configuration of every density, by the density's name."""


def create_density(configuration: AnyDensity, device: torch.device | str = "cpu") -> Density:
    """A density that has learned nothing, as the configuration describes it."""
    match configuration:
        case KernelDensityConfiguration():
            return KernelDensity(configuration, device)
        case OneClassSVMConfiguration():
            return OneClassSVM(configuration, device)
        case GaussianDensityConfiguration():
            return GaussianDensity(configuration, device)
        case GaussianMixtureConfiguration():
            return GaussianMixture(configuration, device)
        case NearestNeighboursConfiguration():
            return NearestNeighbours(configuration, device)
        case RotationClassifierConfiguration():
            return RotationClassifier(configuration, device)
