"""Gauge repeatability and reproducibility: how much of the spread of measurements is the gauge, how much the parts.

The analysis-of-variance method of AIAG's "Measurement Systems Analysis" (4th edition, chapter III). The components of
variance come from Henderson's method 3 (Biometrics 9, 1953): each sum of squares, that of one factor after the others,
is set equal to its expectation. On a balanced design that is the classical analysis; on any other it stays unbiased.
Components estimated below zero are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, f

from training.data import DataError

SIGMAS = 6.0  # of the study variation: AIAG's, which holds 99.73 % of a normal distribution
DISTINCT = 1.41  # categories a gauge can tell: PV / GRR times sqrt(2), as AIAG rounds it
POOLING_LEVEL = 0.05  # an interaction with a p-value above it is taken for repeatability
INTERVAL = 0.90

Floats = NDArray[np.float64]


class GaugeError(DataError):
    """Measurements that no gauge study can be made of."""


@dataclass(frozen=True)
class Source:
    """One line of the analysis of variance; the F test is against the interaction, or else the repeatability."""

    name: str
    degrees: int
    sum_of_squares: float
    f: float | None = None
    p_value: float | None = None

    @property
    def mean_square(self) -> float:
        return self.sum_of_squares / self.degrees


@dataclass(frozen=True)
class Component:
    """One line of the gauge table.

    Attributes:
        deviation: standard deviation.
        study_variation: six of them.
        study_percent: of the total's.
        contribution_percent: of the total variance.
        tolerance_percent: six deviations, of the tolerance; None without one.
    """

    name: str
    deviation: float
    study_variation: float
    study_percent: float
    contribution_percent: float
    tolerance_percent: float | None


@dataclass(frozen=True)
class GaugeStudy:
    """What a gauge is worth.

    Attributes:
        sources: the analysis of variance, the interaction tested before it was pooled.
        pooled: whether the interaction went into the repeatability.
        components: EV, and where there are operators AV and INT; GRR, PV, TV.
        distinct_categories: how many kinds of part it can tell apart; None for a gauge without any spread.
        repeatability_interval: (low, high) of EV, 90 %, exact where measurements of a part are normal.
    """

    measurements: int
    parts: int
    operators: int
    mean: float
    sources: tuple[Source, ...]
    pooled: bool
    components: tuple[Component, ...]
    distinct_categories: int | None
    repeatability_interval: tuple[float, float]

    def component(self, name: str) -> Component:
        """The line of that name."""
        return next(one for one in self.components if one.name == name)


def gauge_study(
    values: Sequence[float],
    parts: Sequence[str],
    operators: Sequence[str] | None = None,
    upper_limit: float | None = None,
) -> GaugeStudy:
    """Analyse repeated measurements of parts.

    Args:
        values: (N,) the measurements.
        parts: (N,) which part each is of.
        operators: (N,) who, or at which station, took each; None where that does not matter.
        upper_limit: values above it are out of specification. A tolerance with one limit is twice the distance from
            the measurements' mean to it, as it is for two limits with the mean between them.

    Raises:
        GaugeError: fewer than two parts or operators, no part measured twice, a value that is not finite.
    """
    y, part = np.asarray(values, np.float64), _indicators(parts)
    if len(set(map(len, (y, parts, operators or parts)))) != 1:
        raise GaugeError("every measurement needs its part, and its operator where there are operators")
    if not np.isfinite(y).all():
        raise GaugeError("a measurement is not finite")
    if part.shape[1] < 2:
        raise GaugeError(f"a gauge study needs at least two parts, got {part.shape[1]}")
    operator = None if operators is None else _indicators(operators)
    if operator is not None and operator.shape[1] < 2:
        raise GaugeError(f"operators make a factor where there are at least two, got {operator.shape[1]}")
    sources, variances, pooled = _one_factor(y, part) if operator is None else _two_factors(y, part, operator)
    error = sources[-1]
    low, high = chi2.ppf([(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], error.degrees)
    mean = float(y.mean())
    tolerance = None if upper_limit is None or upper_limit <= mean else 2 * (upper_limit - mean)
    components = _table(variances, tolerance)
    deviation = {one.name: one.deviation for one in components}
    grr = deviation["GRR"]
    return GaugeStudy(
        measurements=len(y),
        parts=part.shape[1],
        operators=0 if operator is None else operator.shape[1],
        mean=mean,
        sources=sources,
        pooled=pooled,
        components=components,
        distinct_categories=max(1, math.floor(DISTINCT * deviation["PV"] / grr)) if grr > 0 else None,
        repeatability_interval=(
            math.sqrt(error.sum_of_squares / float(high)),
            math.sqrt(error.sum_of_squares / float(low)),
        ),
    )


def _one_factor(y: Floats, part: Floats) -> tuple[tuple[Source, ...], dict[str, float], bool]:
    spaces = {"part": _beyond(part, np.ones((len(y), 1)))}
    error = _repeatability(y, part)
    sources = _tested({**_sources(y, spaces), "repeatability": error}, {"part": "repeatability"})
    variances = _components(y, spaces, {"part": part}, error)
    return sources, {"EV": variances["repeatability"], "PV": variances["part"]}, False


def _two_factors(y: Floats, part: Floats, operator: Floats) -> tuple[tuple[Source, ...], dict[str, float], bool]:
    cell = (part[:, :, None] * operator[:, None, :]).reshape(len(y), -1)
    cell = cell[:, cell.any(axis=0)]
    both = np.hstack([part, operator])
    designs = {"part": part, "operator": operator}
    spaces = {"part": _beyond(both, operator), "operator": _beyond(both, part)}
    if min(space.shape[1] for space in spaces.values()) == 0:
        raise GaugeError("operators and parts cannot be told apart: let operators measure the same parts")
    interaction = _beyond(cell, both)
    tested: list[Source] = []
    # One shot of each part by each operator cannot tell the interaction from the repeatability.
    if interaction.shape[1] and len(y) > cell.shape[1]:
        error = _repeatability(y, cell)
        full = {**spaces, "interaction": interaction}
        against = {"part": "interaction", "operator": "interaction", "interaction": "repeatability"}
        sources = _tested({**_sources(y, full), "repeatability": error}, against)
        p_value = sources[2].p_value
        if p_value is None or p_value <= POOLING_LEVEL:
            return sources, _named(_components(y, full, {**designs, "interaction": cell}, error)), False
        tested = [sources[2]]
    error = _repeatability(y, both)
    against = {"part": "repeatability", "operator": "repeatability"}
    final = _tested({**_sources(y, spaces), "repeatability": error}, against)
    return (*final[:2], *tested, final[2]), _named(_components(y, spaces, designs, error)), True


def _named(variances: dict[str, float]) -> dict[str, float]:
    return {
        "EV": variances["repeatability"],
        "AV": variances["operator"],
        "INT": variances.get("interaction", 0.0),
        "PV": variances["part"],
    }


def _indicators(labels: Sequence[str]) -> Floats:
    """(N, levels) 1 where a measurement has the level."""
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    return np.eye(len(names))[codes]


def _basis(matrix: Floats) -> Floats:
    """(N, rank) orthonormal, of the same column space."""
    left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left[:, singular > 1e-9 * max(1.0, float(singular.max(initial=0)))])


def _beyond(larger: Floats, smaller: Floats) -> Floats:
    """(N, k) orthonormal basis of what ``larger`` spans beyond ``smaller``, which it contains."""
    inside = _basis(smaller)
    return _basis(larger - inside @ (inside.T @ larger))


def _repeatability(y: Floats, model: Floats) -> Source:
    """What the model leaves over."""
    fitted = _basis(model)
    degrees = len(y) - fitted.shape[1]
    if degrees == 0:
        raise GaugeError("no part was measured twice, so nothing tells how well the gauge repeats itself")
    return Source("repeatability", degrees, float(np.square(y - fitted @ (fitted.T @ y)).sum()))


def _sources(y: Floats, spaces: dict[str, Floats]) -> dict[str, Source]:
    return {name: Source(name, space.shape[1], float(np.square(space.T @ y).sum())) for name, space in spaces.items()}


def _tested(sources: dict[str, Source], against: dict[str, str]) -> tuple[Source, ...]:
    def tested(source: Source) -> Source:
        if (name := against.get(source.name)) is None or sources[name].sum_of_squares == 0:
            return source
        ratio = source.mean_square / sources[name].mean_square
        p_value = float(f.sf(ratio, source.degrees, sources[name].degrees))
        return Source(source.name, source.degrees, source.sum_of_squares, ratio, p_value)

    return tuple(tested(source) for source in sources.values())


def _components(y: Floats, spaces: dict[str, Floats], designs: dict[str, Floats], error: Source) -> dict[str, float]:
    """The variances, solved from the sums of squares.

    Over a space with the orthonormal basis U, that is in the mean sum over the factors Z of |U'Z|^2 var(Z), plus dim U
    times the repeatability. What the whole model leaves over has nothing of any Z.
    """
    expected = np.array([[np.square(spaces[row].T @ design).sum() for design in designs.values()] for row in designs])
    dimensions = np.array([spaces[row].shape[1] for row in designs])
    observed = np.array([np.square(spaces[row].T @ y).sum() for row in designs])
    found = np.linalg.solve(expected, observed - dimensions * error.mean_square)
    variances = {name: max(0.0, float(value)) for name, value in zip(designs, found, strict=True)}
    return {**variances, "repeatability": error.mean_square}


def _table(variances: dict[str, float], tolerance: float | None) -> tuple[Component, ...]:
    gauge = sum(value for name, value in variances.items() if name != "PV")
    total = gauge + variances["PV"]

    def line(name: str, variance: float) -> Component:
        deviation = math.sqrt(variance)
        return Component(
            name=name,
            deviation=deviation,
            study_variation=SIGMAS * deviation,
            study_percent=100 * math.sqrt(variance / total) if total else 0.0,
            contribution_percent=100 * variance / total if total else 0.0,
            tolerance_percent=None if tolerance is None else 100 * SIGMAS * deviation / tolerance,
        )

    gauge_lines = [line(name, value) for name, value in variances.items() if name != "PV"]
    return (*gauge_lines, line("GRR", gauge), line("PV", variances["PV"]), line("TV", total))
