"""One-class classifiers on embeddings. Each has a name, under which configurations and artifacts know it."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

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

__all__ = [
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
    "create_density",
    "paper_gamma",
]

DensityConfiguration = Annotated[
    KernelDensityConfiguration
    | OneClassSVMConfiguration
    | GaussianDensityConfiguration
    | GaussianMixtureConfiguration
    | NearestNeighboursConfiguration,
    Field(discriminator="name"),
]


def create_density(configuration: DensityConfiguration, device: torch.device | str = "cpu") -> Density:
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
