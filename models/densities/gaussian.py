"""Gaussians with a full covariance: one of them, or a mixture (Sohn et al., section 3.2: GDE and its middle ground)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.densities.base import Density, refuse_constant

QUERY_TILE = 4096  # queries scored together: 16 MB in float64 for 512 dimensions
SMALLEST_SHRINKAGE = 1e-6  # of the covariance: keeps its inverse finite however the embeddings lie
ITERATIONS = 200  # of expectation-maximisation, at most


class GaussianDensityConfiguration(BaseModel):
    """One Gaussian has no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["gaussian_density"] = "gaussian_density"


class GaussianMixtureConfiguration(BaseModel):
    """Settings of a Gaussian mixture.

    Attributes:
        components: Gaussians.
        regularisation: added to the diagonal of each covariance, in units of the embeddings' mean variance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["gaussian_mixture"] = "gaussian_mixture"
    components: int = Field(default=4, ge=1)
    regularisation: float = Field(default=1e-3, ge=1e-6, allow_inf_nan=False)


class _Gaussians(Density):
    """Log density of a mixture of K Gaussians, relative to the highest that it can be.

    s(x) = log( sum_k w_k N(x; m_k, C_k) ) - log_peak, with log_peak = log( sum_k w_k N(m_k; m_k, C_k) ), so that no
    score is above 0. Computed in float64: the inverse of a covariance amplifies what float32 rounds away.

    Attributes:
        log_peak: what to add to a score for the log density.
    """

    fewest_samples = 2

    def scores(self, queries: Tensor) -> Tensor:
        """Log density relative to ``log_peak``: (n, D) -> (n,)."""
        return torch.cat([self.exact_scores(part.double()) for part in torch.split(queries, QUERY_TILE)]).to(
            queries.dtype
        )

    def exact_scores(self, queries: Tensor) -> Tensor:
        """``scores`` in float64, all at once: (..., D) -> (...)."""
        distances = [  # squared Mahalanobis distances
            ((queries - mean) @ whitening).square().sum(dim=-1)
            for mean, whitening in zip(self._means, self._whitening, strict=True)
        ]
        # The weights at the peak sum to 1; rounding can put the logarithm just above 0.
        return torch.clamp_max((self._peak_log_weights - torch.stack(distances, dim=-1) / 2).logsumexp(dim=-1), 0)

    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        self._means, self._whitening, weights = (
            state[name].to(self.device) for name in ("means", "whitening", "weights")
        )
        log_determinants = self._whitening.diagonal(dim1=1, dim2=2).log().sum(dim=1)  # of C_k^(-1/2)
        peaks = weights.log() + log_determinants
        self._peak_log_weights = peaks.log_softmax(dim=0)
        dimension = self._means.shape[1]
        self.log_peak = float(peaks.logsumexp(dim=0)) - dimension / 2 * math.log(2 * math.pi)


class GaussianDensity(_Gaussians):
    """One Gaussian: s(x) = -(1 / 2) (x - m)^T C^(-1) (x - m), half the squared Mahalanobis distance.

    That is the log density without its constant, ``log_peak``. C is Ledoit and Wolf's shrinkage (2004) of the sample
    covariance towards a multiple of the identity: positive definite and well-conditioned for as few embeddings as
    dimensions, or fewer.

    Args:
        configuration: none needed.
        device: where scores are computed.
    """

    configuration: GaussianDensityConfiguration

    def __init__(
        self, configuration: GaussianDensityConfiguration | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(configuration or GaussianDensityConfiguration(), device)

    def _fit(self, X: NDArray[np.float32]) -> dict[str, Tensor]:
        from sklearn.covariance import (  # only fitting needs scikit-learn
            empirical_covariance,
            ledoit_wolf_shrinkage,
            shrunk_covariance,
        )

        refuse_constant(X)
        values = X.astype(np.float64)
        shrinkage = max(float(ledoit_wolf_shrinkage(values)), SMALLEST_SHRINKAGE)
        covariance = torch.from_numpy(shrunk_covariance(empirical_covariance(values), shrinkage))
        factor = torch.linalg.cholesky(covariance)  # C = L L^T, so that ||L^(-1) (x - m)|| is the distance
        identity = torch.eye(len(covariance), dtype=torch.float64)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False).T
        return {
            "means": torch.from_numpy(values.mean(axis=0))[None],
            "whitening": whitening[None].contiguous(),
            "weights": torch.ones(1, dtype=torch.float64),
            "shrinkage": torch.tensor(shrinkage, dtype=torch.float64),
        }


class GaussianMixture(_Gaussians):
    """A mixture of Gaussians: s(x) = log( sum_k w_k N(x; m_k, C_k) ) - log_peak.

    scikit-learn fits it by expectation-maximisation from k-means, the same each time; whether that converged is among
    the facts. It stands between one Gaussian and the kernel density, which has one for every embedding.

    Args:
        configuration: components and regularisation.
        device: where scores are computed.
    """

    configuration: GaussianMixtureConfiguration

    def __init__(
        self, configuration: GaussianMixtureConfiguration | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(configuration or GaussianMixtureConfiguration(), device)
        self.fewest_samples = max(self.configuration.components, super().fewest_samples)

    def _fit(self, X: NDArray[np.float32]) -> dict[str, Tensor]:
        from sklearn.exceptions import ConvergenceWarning  # only fitting needs scikit-learn
        from sklearn.mixture import GaussianMixture as Mixture

        refuse_constant(X)
        values = X.astype(np.float64)
        mixture = Mixture(
            self.configuration.components,
            reg_covar=self.configuration.regularisation * values.var(axis=0).mean(),
            max_iter=ITERATIONS,
            random_state=0,
        )
        with warnings.catch_warnings():  # ``converged`` says so
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(values)
        return {
            "means": torch.from_numpy(mixture.means_),
            "whitening": torch.from_numpy(np.ascontiguousarray(mixture.precisions_cholesky_)),
            "weights": torch.from_numpy(mixture.weights_),
            "converged": torch.tensor(mixture.converged_),
        }
