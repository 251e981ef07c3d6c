"""One-class support vector machine (Schoelkopf et al., 2001; Sohn et al., section 3.2 and A.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from models.densities.base import Density
from models.densities.kernel import LogKernelSum, paper_gamma


class OneClassSVMConfiguration(BaseModel):
    """Settings of a one-class support vector machine.

    Attributes:
        kernel: ``rbf``, the Gaussian one, or ``linear``.
        nu: upper bound of the share of embeddings left outside; lower bound of the share of support vectors.
        gamma: inverse width of the ``rbf`` kernel; None takes the paper's from the data that ``fit`` sees.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["one_class_svm"] = "one_class_svm"
    kernel: Literal["rbf", "linear"] = "rbf"
    nu: float = Field(default=0.5, gt=0, lt=1)
    gamma: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _gamma_has_a_kernel(self) -> OneClassSVMConfiguration:
        if self.kernel == "linear" and self.gamma is not None:
            raise ValueError(f"gamma ({self.gamma:g}) has no meaning with the linear kernel")
        return self


class OneClassSVM(Density):
    """One-class SVM: s(x) = (sum_i a_i k(x, y_i) - rho) / (nu N), the y_i being its support vectors.

    That is scikit-learn's ``decision_function``, whose coefficients a_i sum to nu N, divided by it so that scores of
    machines fitted on different numbers of embeddings compare. Positive inside the boundary; at most 1 for ``rbf``, and
    never below -rho / (nu N): for queries so far away that the kernel vanishes beside rho, all alike. scikit-learn fits
    it, in time that grows with the square of the number of embeddings.

    Args:
        configuration: kernel, nu and gamma.
        device: where scores are computed.
    """

    configuration: OneClassSVMConfiguration

    def __init__(
        self, configuration: OneClassSVMConfiguration | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(configuration or OneClassSVMConfiguration(), device)

    def scores(self, queries: Tensor) -> Tensor:
        """The scaled decision function: (n, D) -> (n,)."""
        if self.configuration.kernel == "linear":
            return (queries.double() @ self._normal - self._offset).float()
        return self._log_sum(queries).exp() - self._offset

    def _fit(self, X: NDArray[np.float32]) -> dict[str, Tensor]:
        from sklearn.svm import OneClassSVM as Machine  # only fitting needs scikit-learn

        settings = self.configuration
        linear = settings.kernel == "linear"
        gamma = "scale" if linear else settings.gamma or paper_gamma(X)
        machine = Machine(kernel=settings.kernel, nu=settings.nu, gamma=gamma).fit(X.astype(np.float64))
        scale = settings.nu * len(X)
        state = {
            "offset": torch.tensor(machine.offset_[0] / scale),
            "support_count": torch.tensor(len(machine.support_)),
        }
        if linear:
            return {**state, "normal": torch.from_numpy(machine.coef_[0] / scale)}
        return {
            **state,
            "gamma": torch.tensor(gamma, dtype=torch.float64),
            "support_vectors": torch.from_numpy(X[machine.support_]),
            "coefficients": torch.from_numpy(machine.dual_coef_[0] / scale),
        }

    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        self._offset = float(state["offset"])
        if self.configuration.kernel == "linear":
            self._normal = state["normal"].to(self.device)
        else:
            vectors, coefficients = (state[name].to(self.device) for name in ("support_vectors", "coefficients"))
            self._log_sum = LogKernelSum(vectors, float(state["gamma"]), coefficients.log())
