"""Embeddings of the training images, a part after the other: of a large bank there is never more than one copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.densities.kernel import LogKernelSum, StreamedGamma

PART = 4096  # embeddings; about what an image has
SAMPLE = 65536  # embeddings that a reduction and k-means are trained on: 134 MB of dimension 512
HELD_OUT = 1024  # embeddings that errors are measured on,
TOLERATED = "error_95"  # the quantile of the errors that a tolerance is about
HELD_OUT_SHARE = 10  # but of few at most one in so many


def held_out_of(count: int) -> int:
    """How many of so many embeddings a survey holds out."""
    return min(HELD_OUT, count // HELD_OUT_SHARE)


class EmbeddingStream(Protocol):
    """Embeddings that can be gone through as often as needed, in the same order each time.

    Attributes:
        count: how many there are, N.
        dimension: the length D of each.
    """

    @property
    def count(self) -> int: ...
    @property
    def dimension(self) -> int: ...
    def __iter__(self) -> Iterator[Tensor]:
        """Parts (n, D) float32 on whatever device; the n add up to ``count``."""
        ...


class HeldEmbeddings:
    """A stream of embeddings that are in memory already: (N, D) float32, kept and not copied."""

    def __init__(self, embeddings: Tensor) -> None:
        self._embeddings = embeddings
        self.count, self.dimension = embeddings.shape

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.split(self._embeddings, PART))


def chosen(parts: Iterable[Tensor], rows: NDArray[np.int64]) -> Iterator[Tensor]:
    """Of a stream's parts those embeddings whose numbers are in ``rows``, which ascend; no part without any."""
    start = 0
    for part in parts:
        first, last = np.searchsorted(rows, (start, start + len(part)))
        if last > first:
            yield part[torch.from_numpy(rows[first:last] - start).to(part.device)]
        start += len(part)


@dataclass(frozen=True)
class Survey:
    """What a first pass over a stream tells, before anything is learned from all of it.

    Attributes:
        gamma: the paper's, of all embeddings, unless it was set.
        sample: (s, D) of them, drawn at random.
        held_out: (h, D) others; ``rest`` is all but them.
        rest: numbers of the embeddings that are not held out, ascending.
    """

    gamma: float
    sample: Tensor
    held_out: Tensor
    rest: NDArray[np.int64]

    @classmethod
    def of(cls, stream: EmbeddingStream, seed: int, gamma: float | None = None) -> Survey:
        """Go through the stream once.

        Raises:
            ValueError: if the embeddings are not finite, or all the same where gamma is not set.
        """
        order = np.random.default_rng(seed).permutation(stream.count)
        held = held_out_of(stream.count)
        drawn = np.sort(order[: held + SAMPLE])
        moments = StreamedGamma()
        rows = torch.cat([part.cpu() for part in chosen(map(moments.seeing, stream), drawn)])
        is_held = torch.from_numpy(np.isin(drawn, order[:held]))
        return cls(moments.value(gamma), rows[~is_held], rows[is_held], np.sort(order[held:]))


class Witness:
    """Exact scores of held-out embeddings over all others, which pass it once; what passes again is not looked at.

    Args:
        held_out: (h, D) on the device.
        gamma: the kernel's inverse width.
        count: of the others.
    """

    def __init__(self, held_out: Tensor, gamma: float, count: int) -> None:
        self._held_out, self._gamma, self._count = held_out, gamma, count
        self._log_sums = held_out.new_full((len(held_out),), -math.inf, dtype=torch.float64)
        self._seen = 0

    def seeing(self, part: Tensor) -> Tensor:
        """Take embeddings (n, D) into account, and give them back."""
        if self._seen < self._count:
            log_sums = LogKernelSum(part.to(self._held_out.device), self._gamma)(self._held_out)
            self._log_sums = torch.logaddexp(self._log_sums, log_sums.double())
            self._seen += len(part)
        return part

    def errors(self, scores: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """By how much an approximation is off, in units of the score: how many were looked at, and of the absolute
        errors the mean, two quantiles and the largest, by name; the last four are 0 where none was held out."""
        exact = (self._log_sums - math.log(self._count)) / self._gamma
        with torch.no_grad():
            errors = (scores(self._held_out).double() - exact).abs().cpu()
        if not len(errors):
            errors = errors.new_zeros(1)
        return {
            "held_out": torch.tensor(len(self._held_out)),
            "error_mean": errors.mean(),
            TOLERATED: errors.quantile(0.95),
            "error_99": errors.quantile(0.99),
            "error_largest": errors.max(),
        }
