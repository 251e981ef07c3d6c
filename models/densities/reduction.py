"""Fewer dimensions, so that a kernel sum costs less, with what is left out accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Self

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

REDUCTION = "reduction."  # before the names of its arrays
NO_ENERGY = 1e-6  # of a residual; float32 rounds so


class ReductionConfiguration(BaseModel):
    """How embeddings lose dimensions before the kernel sum.

    Attributes:
        method: ``pca`` keeps the directions in which good embeddings vary most; ``random_projection`` random ones.
        dimension: that are left, the one for the residual of ``pca`` included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["pca", "random_projection"] = "pca"
    dimension: int = Field(default=96, ge=2)

    @property
    def directions(self) -> int:
        """How many of the dimensions are directions, and not the residual."""
        return self.dimension - (self.method == "pca")

    def check(self, count: int, dimension: int) -> None:
        """Refuse what ``Reduction.train`` cannot learn from.

        Raises:
            ValueError: if ``count`` embeddings of a dimension are too few for so many directions.
        """
        if self.directions >= min(count, dimension):
            raise ValueError(
                f"{count} embeddings of dimension {dimension} cannot be reduced to {self.dimension} by {self.method}; "
                "take a smaller dimension or none"
            )


class Reduction(NamedTuple):
    """A linear map to fewer dimensions that keeps squared distances, nearly.

    *pca*: with P the projection on the leading directions, around the mean m, and r(x) = ||(I - P)(x - m)||^2,

        ||x - y||^2 = ||P(x - y)||^2 + r(x) + r(y) - 2 (I - P)(x - m) . (I - P)(y - m)

    of which the last term is neglected: good embeddings have little residual, a defect has much, and it points
    elsewhere. Plain truncation neglects r(x) as well, which is what tells a defect. r(y) is one more dimension of the
    bank, sqrt(r), in which queries are 0; r(x) is subtracted from the score. So it costs a norm.

    *random_projection*: random orthogonal directions, scaled so that squared distances are kept on average (Johnson and
    Lindenstrauss, 1984); no residual.

    Attributes:
        mean: (D,) m; 0 for random directions.
        directions: (D, d'), the columns orthonormal, scaled for random directions.
        residual: whether one more dimension holds it.
    """

    mean: Tensor
    directions: Tensor
    residual: bool

    @classmethod
    def train(cls, sample: Tensor, configuration: ReductionConfiguration, seed: int) -> Self:
        """The reduction of embeddings like ``sample`` (n, D), as FAISS finds it.

        Raises:
            ValueError: if the sample is too small for so many directions.
        """
        count, dimension = sample.shape
        configuration.check(count, dimension)
        pca, kept = configuration.method == "pca", configuration.directions
        if pca:
            components = faiss.PCAMatrix(dimension, kept)
            components.train(np.ascontiguousarray(sample.cpu().numpy()))
            rows, scale = faiss.vector_to_array(components.A), 1.0
            mean = torch.from_numpy(faiss.vector_to_array(components.mean))
        else:
            rotation = faiss.RandomRotationMatrix(dimension, kept)
            rotation.init(seed)
            rows, scale = faiss.vector_to_array(rotation.A), (dimension / kept) ** 0.5
            mean = torch.zeros(dimension)
        directions = rows.reshape(-1, dimension)[:kept].T * np.float32(scale)
        return cls(mean, torch.from_numpy(directions).contiguous(), pca)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], device: torch.device) -> Self | None:
        """The one that ``state`` has; None if it has none."""
        if f"{REDUCTION}mean" not in state:
            return None
        mean, directions, residual = (state[f"{REDUCTION}{name}"].to(device) for name in cls._fields)
        return cls(mean, directions, bool(residual))

    @property
    def dimension(self) -> int:
        """d, what is left."""
        return self.directions.shape[1] + self.residual

    def state(self) -> dict[str, Tensor]:
        """Its arrays by name."""
        return {f"{REDUCTION}{name}": torch.as_tensor(value) for name, value in self._asdict().items()}

    def widened(self, embeddings: Tensor, most: int) -> Self:
        """This with up to ``most`` further directions, in which embeddings (n, D) are that the others leave out.

        What already went through this has nothing in the new ones: its residual, which is small, is neglected there as
        elsewhere.
        """
        apart = (embeddings - self.mean).double()
        directions = self.directions.double()
        left_out = apart - apart @ directions @ directions.T
        energies, axes = torch.linalg.eigh(left_out.T @ left_out)
        count = min(most, int((energies > NO_ENERGY * len(embeddings)).sum()))
        further = axes[:, len(axes) - count :].flip(1)
        return self._replace(directions=torch.cat([directions, further], dim=1).float())

    @property
    def longest(self) -> float:
        """No query of unit length is longer than this once it is reduced."""
        scale = float(self.directions[:, 0].norm())
        return scale * (1 + float(self.mean.norm()))

    def of_bank(self, embeddings: Tensor) -> Tensor:
        """(n, D) -> (n, d)."""
        projected, residuals = self.of_queries(embeddings)
        if self.residual:
            projected[:, -1] = residuals.sqrt()
        return projected

    def of_queries(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> (..., d) and r (...), which belongs to the squared distance to whatever embedding of the bank."""
        columns = [self.directions, self.mean[:, None]] if self.residual else [self.directions]
        matrix = torch.cat(columns, dim=1)
        projected = F.linear(queries, matrix.T, -self.mean @ matrix)  # of the mean itself: (x - m).m
        if not self.residual:
            return projected, queries.new_zeros(queries.shape[:-1])
        kept, along = projected[..., :-1], projected[..., -1]
        # ||x - m||^2 = ||x||^2 - ||m||^2 - 2 (x - m).m; the norm is taken without a copy of the squares
        whole = torch.linalg.vector_norm(queries, dim=-1).square() - self.mean.square().sum() - 2 * along
        residuals = (whole - kept.square().sum(dim=-1)).clamp_min(0)
        return F.pad(kept, (0, 1)), residuals
