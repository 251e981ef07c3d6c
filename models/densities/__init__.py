"""One-class classifiers on embeddings. Each has a name, under which configurations and artifacts know it."""

from __future__ import annotations

import torch

from models.densities.base import Density, paper_gamma
from models.densities.kde import KernelDensity, KernelDensityConfiguration

__all__ = [
    "Density",
    "DensityConfiguration",
    "KernelDensity",
    "KernelDensityConfiguration",
    "create_density",
    "paper_gamma",
]

DensityConfiguration = KernelDensityConfiguration


def create_density(configuration: DensityConfiguration, device: torch.device | str = "cpu") -> Density:
    """A density that has learned nothing, as the configuration describes it."""
    match configuration:
        case KernelDensityConfiguration():
            return KernelDensity(configuration, device)
