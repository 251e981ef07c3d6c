"""Kernel density on a FAISS index: the one-class classifier of the paper (Sohn et al., section 3.2, eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.densities.bank import Bank, BankDensity
from models.densities.compression import LOG_WEIGHTS, METRIC, Cells
from models.densities.kernel import LogKernelSum, Precision, StreamedGamma
from models.densities.reduction import Reduction, ReductionConfiguration
from models.densities.sampled import SMALLEST, SampledLogKernelSum, sample_sizes, stratified_rows
from models.densities.stream import TOLERATED, EmbeddingStream, HeldEmbeddings, Survey, Witness, chosen, held_out_of

Computed = Literal["exact", "neighbours", "sampled", "compressed"]
"""The ways in which a sum is computed; an artifact names one by its place here, so a new one goes to the end."""

SAMPLE = "sample."  # before the place of each in the state
EMBEDDING_BYTES = 4  # of a dimension
NEW_DIRECTIONS = 16  # that a reduction gets at most for what joins its bank
FEW = 2048  # embeddings; so few are summed exactly
CENTRES = ((1024,), (2048, 4096, 8192))
"""Numbers of centres that are tried: those of a row in one pass over all embeddings, the fewest first."""


def _usual_reduction(settings: dict[str, Any]) -> ReductionConfiguration | None:
    return ReductionConfiguration() if settings.get("mode") in ("auto", "compressed") else None


def _usual_tolerance(settings: dict[str, Any]) -> float:
    return 0.005 if settings.get("mode") == "sampled" else 0.02


class KernelDensityConfiguration(BaseModel):
    """Settings of a kernel density.

    Attributes:
        mode: ``exact`` sums over the whole bank; ``compressed`` over weighted centres that stand for it; ``auto`` over
            the fewest centres whose error is within the tolerance, on whatever device; where none is, exactly if the
            bank may keep all embeddings, else by what has the smallest error; and exactly where there are few
            embeddings; ``sampled`` estimates the exact score from samples of the bank, with a known error;
            ``neighbours`` sums over the nearest embeddings only, another score.
        tolerance: in units of the score, a squared distance. Of ``auto``: how far 95 % of held-out embeddings of good
            parts may be off; 0.02 where nothing is said. Of ``sampled``: how far a score may be off at 95 % confidence;
            beyond, the query gets a sample four times as large, at last the whole bank; 0.005.
        centres: how many ``compressed`` has, or ``auto`` tries; None is 1024, or for ``auto`` 1024 to 8192.
        reduction: of dimensions, before the sum; where nothing is said, by pca for ``auto`` and ``compressed``, and
            none for the others.
        bank_megabytes: what a bank of embeddings may take in memory and in the artifact; of more embeddings so many are
            drawn.
        neighbours: how many of them.
        gamma: the kernel's inverse width; None takes the paper's from the data that ``fit`` sees.
        precision: of the embeddings in the products of a sum over a whole bank; half of float32's bits take less time
            where the processor multiplies them. A sample is always summed in float32.
        samples: embeddings in the smallest sample, at most a quarter of the bank; 128 of them must carry a query's sum,
            or it gets a larger one.
        seed: of the samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["kernel_density"] = "kernel_density"
    mode: Literal["auto", "exact", "compressed", "sampled", "neighbours"] = "auto"
    tolerance: float = Field(default_factory=_usual_tolerance, gt=0, allow_inf_nan=False)
    centres: int | None = Field(default=None, ge=1)
    reduction: ReductionConfiguration | None = Field(default_factory=_usual_reduction)
    bank_megabytes: float = Field(default=100, gt=0, allow_inf_nan=False)
    neighbours: int = Field(default=32, ge=1)
    gamma: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    precision: Precision = "float32"
    samples: int = Field(default=32768, ge=SMALLEST)
    seed: int = Field(default=0, ge=0)


class KernelDensity(BankDensity):
    """Gaussian kernel density: s(x) = (1 / gamma) log( (1 / N) sum_y exp(-gamma ||x - y||^2) ).

    gamma = 10 / (D Var(X)), D the dimension and Var over all entries (eq. 6 and section A.1). The paper's sum has no
    1 / N; here it is divided by N so that banks of different size compare. Computed in log space, and in float32 unless
    the precision is set: then exact to 1e-5 for embeddings of unit norm. Scores are in units of squared distance and
    never above 0.

    The *compressed* mode approximates the sum (see ``Cells`` and ``Reduction``). How far it is off is measured by
    ``fit``: on embeddings of the training images that it leaves out of the bank, against the exact score over all
    others; the facts have it. The *sampled* mode is an unbiased estimate of the sum; ``scores_with_error`` tells how
    far each score may be off. The *neighbours* mode keeps the 1 / N and sums over the k nearest embeddings only: a
    lower bound of the exact score, and with this wide kernel a different ranking.

    Args:
        configuration: mode and its settings, and gamma.
        device: where the sum is computed.

    Attributes:
        gamma: set by ``fit``, from embeddings of full dimension.
        mode: how the sum is computed; what ``fit`` made of the configuration's.
        reduction: what queries and bank have gone through before the sum, if anything.
    """

    configuration: KernelDensityConfiguration
    reduction: Reduction | None

    def __init__(
        self, configuration: KernelDensityConfiguration | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(configuration or KernelDensityConfiguration(), device)
        self.gamma = math.nan
        self.mode: Computed = "exact"

    def check_samples(self, count: int, dimension: int | None = None) -> None:
        super().check_samples(count, dimension)
        settings = self.configuration
        if settings.reduction is None or dimension is None:
            return
        wanted = settings.reduction.dimension
        if wanted >= dimension:
            if "reduction" in settings.model_fields_set:  # the usual one is not for embeddings as short as that
                raise ValueError(
                    f"embeddings of dimension {dimension} cannot be reduced to {wanted}; take fewer or none"
                )
        elif settings.mode != "auto" or count > FEW:
            settings.reduction.check(count - held_out_of(count), dimension)

    def fit_stream(self, stream: EmbeddingStream, seed: int = 0) -> Self:
        """As ``fit``, of embeddings that need not be in memory; they are gone through up to four times.

        Args:
            seed: of what is drawn at random.

        Raises:
            ValueError: as ``fit``.
        """
        self.check_samples(stream.count, stream.dimension)
        self._adopt(self._learn(stream, seed))
        return self

    def scores(self, queries: Tensor) -> Tensor:
        """Log density up to the kernel's constant: (n, D) -> (n,)."""
        projected, residuals = self.projected(queries)
        return self.scores_of(self._log_sum(projected), residuals)

    def scores_with_error(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) of queries (n, D), and how far each may be off at 95 % confidence for having been sampled, (n,).

        The confidence is that of an average over queries; it is lower for those that lie furthest from the bank.
        The second is 0 where nothing was sampled. It tells nothing of rounding, of compression and reduction, whose
        errors are among the facts, nor of another score than the exact.
        """
        if not isinstance(self._log_sum, SampledLogKernelSum):
            return super().scores_with_error(queries)
        projected, residuals = self.projected(queries)
        log_sums, half_widths = self._log_sum.estimates(projected)
        return self.scores_of(log_sums, residuals), half_widths / self.gamma

    def in_float32(self) -> Self:
        """The same density, its products in float32."""
        if self.configuration.precision == "float32":
            return self
        exact = type(self)(self.configuration.model_copy(update={"precision": "float32"}), self.device)
        exact.bank = self.bank
        exact._adopt(self.state)
        return exact

    def facts(self) -> dict[str, Any]:
        sampled = {"sampled": [rows.numel() for rows in _samples(self.state)]} if self.mode == "sampled" else {}
        return {**super().facts(), "mode": self.mode, "bank": len(self.bank), **sampled}

    def summary(self) -> str:
        """What ``fit`` has made, in a line for whoever waits for it."""
        facts = self.facts()
        bank, offered, samples = facts["bank"], facts["offered"], facts["samples"]
        if self.mode == "compressed":
            made = f"compressed: {bank} centres for {samples} embeddings"
        elif self.reduction is None and bank < offered:
            made = (
                f"{self.mode}: a bank of {bank} of {offered} embeddings, the {self.configuration.bank_megabytes:g} MB "
                "that bank_megabytes allows"
            )
        else:
            made = f"{self.mode}: a bank of {bank} embeddings"
        if self.mode == "sampled" and not facts["sampled"]:
            made += f", summed whole: {SMALLEST} would be over a quarter of it"
        if not facts.get("held_out"):
            return made
        made += (
            f"; error on {facts['held_out']} held-out ones: mean {facts['error_mean']:.4f}, of 95 % up to "
            f"{facts[TOLERATED]:.4f}, largest {facts['error_largest']:.4f}"
        )
        if self.configuration.mode == "auto" and facts[TOLERATED] > self.configuration.tolerance:
            made += f"; the smallest that was found, and above the tolerance of {self.configuration.tolerance:g}"
        return made

    def projected(self, queries: Tensor) -> tuple[Tensor, Tensor | float]:
        """Queries (..., D) as the bank has its own, (..., d), and what that leaves out of squared distances, (...)."""
        residuals: Tensor | float = 0.0
        if self.reduction is not None:
            queries, residuals = self.reduction.of_queries(queries)
        return queries if self._metric is None else queries @ self._metric, residuals

    def scores_of(self, log_sums: Tensor, residuals: Tensor | float) -> Tensor:
        """Scores (...) from the logarithms of the sums of queries that ``projected`` has reduced, (...)."""
        # A mean of kernels is at most 1; rounding can put its logarithm just above 0.
        return torch.clamp_max((log_sums - self._log_samples) / self.gamma - residuals, 0)

    def _fit(self, X: NDArray[np.float32]) -> dict[str, Tensor]:
        return self._learn(HeldEmbeddings(torch.from_numpy(X)), seed=0)

    def _learn(self, stream: EmbeddingStream, seed: int) -> dict[str, Tensor]:
        settings = self.configuration
        if settings.mode == "auto" and stream.count <= FEW:
            return self._keep(stream, "exact", seed)
        if settings.mode != "auto" and settings.mode != "compressed" and settings.reduction is None:
            return self._keep(stream, settings.mode, seed)
        return self._approximate(stream, seed)

    def _keep(self, stream: EmbeddingStream, mode: Computed, seed: int) -> dict[str, Tensor]:
        """A bank of the embeddings as they are, or of as many as may be kept."""
        rows = self._fitting(np.arange(stream.count), stream.dimension, seed)
        gamma = StreamedGamma()
        parts = chosen(map(gamma.seeing, stream), rows)
        self.bank = Bank.of(parts, len(rows), stream.dimension, self.device)
        learned = _learned(stream, len(rows), gamma.value(self.configuration.gamma), mode)
        return {**learned, **self._of_bank()}

    def _fitting(self, rows: NDArray[np.int64], dimension: int, seed: int) -> NDArray[np.int64]:
        """As many of the rows as an exact bank may have, ascending."""
        most = self._most(dimension)
        if len(rows) <= most:
            return rows
        return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))

    def _most(self, dimension: int) -> int:
        """How many embeddings a bank may have."""
        return max(1, int(self.configuration.bank_megabytes * 1e6 / (dimension * EMBEDDING_BYTES)))

    def _approximate(self, stream: EmbeddingStream, seed: int) -> dict[str, Tensor]:
        """What stands for the embeddings that are not held out, and how far scores of those that are lie from exact."""
        settings = self.configuration
        survey = Survey.of(stream, seed, settings.gamma)
        samples, gamma = len(survey.rest), survey.gamma
        witness = Witness(survey.held_out.to(self.device), gamma, samples)
        reduction = None
        if settings.reduction is not None and settings.reduction.dimension < stream.dimension:
            reduction = Reduction.train(survey.sample, settings.reduction, seed)

        def passing(rows: NDArray[np.int64], reduction: Reduction | None) -> Iterator[Tensor]:
            parts = chosen(map(witness.seeing, chosen(stream, survey.rest)), rows)
            return parts if reduction is None else (reduction.of_bank(part.cpu()) for part in parts)

        def measured(mode: Computed, arrays: Mapping[str, Tensor], reduction: Reduction | None) -> dict[str, Tensor]:
            count = samples if mode == "compressed" else len(self.bank)
            state = {**_learned(stream, count, gamma, mode), **arrays, **(reduction.state() if reduction else {})}
            self._adopt(state)
            return {**state, **witness.errors(self.scores)}

        def drawn(mode: Computed, reduction: Reduction | None) -> dict[str, Tensor]:
            """A bank of as many embeddings as may be kept."""
            dimension = reduction.dimension if reduction else stream.dimension
            rows = self._fitting(np.arange(samples), dimension, seed)
            self.bank = Bank.of(passing(rows, reduction), len(rows), dimension, self.device)
            return measured(mode, self._of_bank(), reduction)

        def compressed(numbers: Sequence[int], reduction: Reduction | None) -> Iterator[dict[str, Tensor]]:
            """Banks of so many centres, made in one pass."""
            sample = reduction.of_bank(survey.sample) if reduction else survey.sample
            cells = [Cells.of(sample, number, seed) for number in numbers]
            for part in passing(np.arange(samples), reduction):
                for one in cells:
                    one.add(part)
            for one in cells:
                centres, arrays = one.compressed(gamma)
                self.bank = Bank.of([centres], len(centres), centres.shape[1], self.device)
                yield measured("compressed", arrays, reduction)

        if settings.mode != "auto" and settings.mode != "compressed":
            return drawn(settings.mode, reduction)
        numbers = CENTRES if settings.centres is None else ((settings.centres,),)
        ways = [(some, reduction) for some in numbers]
        if reduction is not None and "reduction" not in settings.model_fields_set:
            ways.append((numbers[-1][-1:], None))  # where it is the dimensions that are too few
        found = []
        for some, reduction in ways:
            for state in compressed(some, reduction):
                if settings.mode == "compressed" or state[TOLERATED] <= settings.tolerance:
                    return state
                found.append((float(state[TOLERATED]), state, self.bank))
        if stream.count <= self._most(stream.dimension):
            return self._keep(stream, "exact", seed)
        state = drawn("exact", None)
        found.append((float(state[TOLERATED]), state, self.bank))
        _, state, self.bank = min(found, key=itemgetter(0))
        return state

    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        self.gamma = float(state["gamma"])
        self._log_samples = math.log(int(state["samples"]))
        if "mode" in state:
            self.mode = get_args(Computed)[int(state["mode"])]
        else:  # an artifact of before 1.1: it is the configuration's
            self.mode = "neighbours" if self.configuration.mode == "neighbours" else "exact"
        self.reduction = Reduction.of_state(state, self.device)
        self._metric = state[METRIC].to(self.device) if METRIC in state else None
        self._log_sum = self._summing(state)

    def _summing(self, state: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """What gives log( sum_y exp(-gamma ||x - y||^2) ) of queries (n, d): (n,)."""
        vectors, precision = self.bank.vectors, self.configuration.precision
        match self.mode:
            case "exact":
                return LogKernelSum(vectors, self.gamma, precision=precision)
            case "neighbours":
                return self._nearest_log_sum
            case "sampled":
                whole = LogKernelSum(vectors, self.gamma, precision=precision)
                tolerance = self.configuration.tolerance * self.gamma
                return SampledLogKernelSum(vectors, self.gamma, _samples(state), tolerance, whole)
            case "compressed":
                return LogKernelSum(vectors, self.gamma, state[LOG_WEIGHTS].to(self.device), precision)

    def _nearest_log_sum(self, queries: Tensor) -> Tensor:
        count = min(self.configuration.neighbours, len(self.bank))  # no more neighbours than there are
        return (-self.gamma * self.bank.squared_distances(queries, count)).logsumexp(dim=1)

    def _of_bank(self) -> dict[str, Tensor]:
        if self.configuration.mode != "sampled":
            return {}
        sizes = sample_sizes(self.configuration.samples, len(self.bank))
        samples = stratified_rows(self.bank.vectors, sizes, self.configuration.seed)
        return {f"{SAMPLE}{place}": rows for place, rows in enumerate(samples)}

    def _rows(self, X: Tensor) -> Tensor:
        rows = X if self.reduction is None else self.reduction.of_bank(X)
        return rows if self._metric is None else rows @ self._metric

    def _ready_for(self, X: Tensor) -> Self:
        """With what the reduction left out of X: two windows of one new kind would be far apart, by both residuals."""
        if self.reduction is None or not self.reduction.residual:
            return self
        wider = self.reduction.widened(X, NEW_DIRECTIONS)
        old, new = self.reduction.dimension, wider.dimension
        # As before in the old dimensions, the residual's the last of them; the new ones come between.
        metric = torch.zeros(new, new)
        metric[[*range(old - 1), new - 1], :old] = self.state.get(METRIC, torch.eye(old))
        metric[old - 1 : new - 1, old:] = torch.eye(new - old)
        ready = type(self)(self.configuration, self.device)
        vectors = torch.nn.functional.pad(self.bank.vectors, (0, new - old))
        ready.bank = Bank.of([vectors], len(vectors), new, self.device)
        arrays = {name: tensor.cpu() for name, tensor in wider.state().items()}
        ready._adopt({**self.state, **arrays, METRIC: metric})
        return ready

    def _counted(self, more: int) -> dict[str, Tensor]:
        """What joins centres becomes centres of weight one."""
        log_weights = self.state.get(LOG_WEIGHTS)
        joined = {} if log_weights is None else {LOG_WEIGHTS: torch.cat([log_weights, torch.zeros(more)])}
        return {**super()._counted(more), **joined}


def _learned(stream: EmbeddingStream, samples: int, gamma: float, mode: Computed) -> dict[str, Tensor]:
    return {
        "samples": torch.tensor(samples),
        "offered": torch.tensor(stream.count),
        "dimension": torch.tensor(stream.dimension),
        "gamma": torch.tensor(gamma, dtype=torch.float64),
        "mode": torch.tensor(get_args(Computed).index(mode)),
    }


def _samples(state: Mapping[str, Tensor]) -> list[Tensor]:
    """The rows of each sample, the smallest first."""
    names = sorted((name for name in state if name.startswith(SAMPLE)), key=lambda name: int(name[len(SAMPLE) :]))
    return [state[name] for name in names]
