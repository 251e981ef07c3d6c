"""One-class densities on embeddings, in scikit-learn's idiom; higher ``score_samples`` is more normal."""

from models.densities.kde import KernelDensity, KernelDensityConfiguration

__all__ = ["KernelDensity", "KernelDensityConfiguration"]
