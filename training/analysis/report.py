"""The table and the plot of an analysis, the paper's figure beside ours where it gives one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import StatisticsError, correlation
from typing import NamedTuple

from matplotlib.figure import Figure as Plot

from training.analysis.definitions import ANALYSES, PAPER_CORRELATIONS, PAPER_MEANS, Point, Representation
from training.analysis.protocol import AUROC, SQUARED_MMD, Variations
from training.reproduction import report
from training.reproduction.paper import Figure
from training.reproduction.report import aligned, write_table, written
from training.reproduction.study import Cell

COLUMNS = (
    "subject", "method", "value", "classifier", "auroc", "deviation", "log_mmd", "seeds", "paper", "paper_deviation",
    "same_subjects",
)  # fmt: skip
FEWEST_MODELS = 3  # two points always lie on a line
SIZE = (7.0, 4.5)  # of the plot, in inches


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        subject: a class, or "mean" with how many of them were measured.
        auroc: in percent.
        log_mmd: half the logarithm of MMD^2, averaged over seeds; None where that estimate is not above 0.
        paper: its AUROC; None where it gives none.
        is_same: whether the paper's is over the same classes.
        is_group: whether it is an average over classes.
    """

    subject: str
    method: str
    value: str
    classifier: str
    auroc: Figure
    log_mmd: float | None
    seeds: int
    paper: Figure | None
    is_same: bool
    is_group: bool


class Correlation(NamedTuple):
    """Pearson's, over models, between log MMD of g(f) and the AUROC of ``representation``; the paper's beside it."""

    subject: str
    representation: Representation
    value: float
    models: int
    paper: float


def tabulate(protocol: Variations, name: str, points: Sequence[Point], cells: Sequence[Cell]) -> list[Row]:
    """Classes first, then the average of several; the values of a method and classifier below each other."""
    analysis = ANALYSES[name]
    variants = {point.variant for point in points}
    chosen = [cell for cell in cells if cell.trial.method in variants and cell.classifier in analysis.classifiers]
    lines = report.tabulate(protocol, chosen)
    found = {(line.metric, line.subject, line.method, line.classifier): line for line in lines}
    classes = [subject for subject in protocol.source.classes if any(line.subject == subject for line in lines)]
    groups = list(dict.fromkeys(line.subject for line in lines if line.is_group)) if len(classes) > 1 else []
    rows = []
    for subject, method, classifier in product(classes + groups, analysis.methods, analysis.classifiers):
        for point in points:
            line = found.get((AUROC, subject, point.variant, classifier))
            if line is None or point.method != method:
                continue
            distance = found[SQUARED_MMD, subject, point.variant, classifier].measured.mean
            said = PAPER_MEANS.get((protocol.source.paper, point.variant)) if classifier == "f" else None
            rows.append(
                Row(
                    subject, method, point.value, classifier, line.measured,
                    log_mmd=math.log(distance) / 2 if distance > 0 else None,
                    seeds=line.seeds,
                    paper=said if said and line.is_group else line.paper,
                    is_same=line.is_same,
                    is_group=line.is_group,
                )
            )  # fmt: skip
    return rows


def correlations(name: str, rows: Sequence[Row]) -> list[Correlation]:
    """Of an analysis of uniformity: for each class and their average, if there are models enough."""
    if not ANALYSES[name].over_mmd:
        return []
    distances = _distances(rows)
    every = []
    for subject, (representation, paper) in product(
        dict.fromkeys(row.subject for row in rows), PAPER_CORRELATIONS.items()
    ):
        pairs = [
            (distance, row.auroc.mean)
            for row in rows
            if (row.subject, row.classifier) == (subject, representation)
            and (distance := distances[subject, row.method, row.value]) is not None
        ]
        with suppress(StatisticsError):  # all the same: there is none
            if len(pairs) >= FEWEST_MODELS:
                value = correlation(*zip(*pairs, strict=True))
                every.append(Correlation(subject, representation, value, len(pairs), paper))
    return every


def markdown(name: str, rows: Sequence[Row]) -> str:
    """The table as Markdown, and correlations below it."""
    heading = ("class", "method", ANALYSES[name].setting, "KDE of", "AUROC", "log MMD", "seeds", "paper", "difference")
    body = [
        (
            f"**{row.subject}**" if row.is_group else row.subject, row.method, row.value, row.classifier,
            written(row.auroc), "" if row.log_mmd is None else f"{row.log_mmd:.2f}", str(row.seeds),
            "" if row.paper is None else written(row.paper),
            "" if row.paper is None or not row.is_same else f"{row.auroc.mean - row.paper.mean:+.1f}",
        )
        for row in rows
    ]  # fmt: skip
    found = [
        f"{line.subject}: correlation of log MMD of g with AUROC of {line.representation}, over {line.models} models: "
        f"{line.value:.3f} (paper: {line.paper:.3f})"
        for line in correlations(name, rows)
    ]
    return aligned([heading, *body]) + "".join(f"\n- {line}" for line in found) + ("\n" if found else "")


def write(folder: Path, name: str, rows: Sequence[Row], title: str) -> None:
    """Write the table as CSV and Markdown and its plot, each under the name of the analysis."""
    table = [[*row[:4], *row.auroc, row.log_mmd, row.seeds, *(row.paper or (None, None)), row.is_same] for row in rows]
    text = f"# {title}\n\n{ANALYSES[name].shows}; AUROC in percent\n\n{markdown(name, rows)}"
    write_table(folder, name, [COLUMNS, *table], text, plot(name, rows, title))


def plot(name: str, rows: Sequence[Row], title: str) -> Plot:
    """AUROC averaged over classes: over the values, or the classifiers where there is one value, or log MMD of g(f).

    A colour is a method and classifier; open diamonds are the paper's.
    """
    analysis = ANALYSES[name]
    drawn = [row for row in rows if row.is_group] or list(rows)  # one class has no average
    values = [value for value in analysis.values if any(row.value == value for row in drawn)]
    ticks = values if len(values) > 1 else list(analysis.classifiers)
    distances = _distances(rows)

    def place(row: Row) -> float | None:
        if analysis.over_mmd:
            return distances[row.subject, row.method, row.value]
        return ticks.index(row.value if len(values) > 1 else row.classifier)

    def series(row: Row) -> str:
        return f"{row.method}, {row.classifier}" if len(values) > 1 else row.method

    figure = Plot(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for number, label in enumerate(dict.fromkeys(map(series, drawn))):
        placed = [(x, row) for row in drawn if series(row) == label and (x := place(row)) is not None]
        axes.errorbar(
            [x for x, _ in placed],
            [row.auroc.mean for _, row in placed],
            [row.auroc.deviation or 0 for _, row in placed],
            fmt="o" if analysis.over_mmd else "o-", color=f"C{number}", capsize=2, label=label,
        )  # fmt: skip
        known = [(x, row.paper.mean) for x, row in placed if row.paper]
        if known:
            axes.plot(*zip(*known, strict=True), "D", color=f"C{number}", fillstyle="none")
    if analysis.over_mmd:
        axes.set_xlabel("log MMD of g(f) to uniform on the sphere")
    else:
        axes.set_xticks(range(len(ticks)), ticks, rotation=30, ha="right")
        axes.set_xlabel(analysis.setting if len(values) > 1 else "kernel density of")
    axes.set_ylabel("AUROC (percent)")
    axes.set_title(f"{title} (diamonds: the paper)", fontsize=10)
    axes.grid(axis="y", color="#dddddd")
    axes.legend(fontsize=8)
    return figure


def _distances(rows: Sequence[Row]) -> dict[tuple[str, str, str], float | None]:
    """log MMD of g(f) of each subject, method and value."""
    return {(row.subject, row.method, row.value): row.log_mmd for row in rows if row.classifier == "g"}
