"""The tables of a study beside the paper's: what was measured over seeds, per subject and on average."""

from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from matplotlib.figure import Figure as Plot

from training.reproduction.methods import CLASSIFIERS, METHODS
from training.reproduction.paper import Figure, Key, average, paper_figures
from training.reproduction.protocol import Protocol
from training.reproduction.study import Cell

TABLE_CSV, TABLE_MARKDOWN, PLOT = "table.csv", "table.md", "table.png"
COLUMNS = ("metric", "subject", "method", "classifier", "auroc", "deviation", "seeds", "paper", "paper_deviation")
INCHES_PER_SUBJECT, LEAST_INCHES, DOTS_PER_INCH = 0.5, 5.0, 110
SPREAD = 0.7  # of the space between two subjects that their points take


class Line(NamedTuple):
    """One line of a table, in percent.

    Attributes:
        subject: a class or category, or the name of a group with how many of it were measured.
        seeds: trainings behind the figure; the fewest of any subject for a group.
        paper: what the paper reports for the same; None where it reports nothing.
        is_group: whether it is an average over subjects.
    """

    metric: str
    subject: str
    method: str
    classifier: str
    measured: Figure
    seeds: int
    paper: Figure | None
    is_group: bool

    def to_json(self) -> dict[str, Any]:
        """Itself, ready for JSON."""
        paper = None if self.paper is None else self.paper._asdict()
        return {**self._asdict(), "measured": self.measured._asdict(), "paper": paper}


def tabulate(protocol: Protocol, cells: Sequence[Cell]) -> list[Line]:
    """Every metric, method and classifier: the subjects measured, then the groups.

    A deviation is the sample's, over seeds. A group is the average of its subjects, its deviation the average of
    theirs, as in the paper. Where only some of a group were measured, its line says how many, and the paper's figure
    beside it is the average over the same ones, or, where the paper gives none for each, over all.
    """
    values: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for metric, value in cell.figures.items():
            values[metric, cell.trial.method, cell.classifier][cell.trial.subject].append(value)
    order = {name: index for index, name in enumerate((*METHODS, *CLASSIFIERS))}
    lines: list[Line] = []
    for metric, method, classifier in sorted(
        values, key=lambda key: (list(protocol.paper_datasets).index(key[0]), order[key[1]], order[key[2]])
    ):
        by_subject = values[metric, method, classifier]
        subjects = [name for name in protocol.groups[-1].members if name in by_subject]
        measured = {name: _over_seeds(by_subject[name]) for name in subjects}
        for name in subjects:
            paper = _paper(protocol, metric, name, method, classifier)
            seeds = len(by_subject[name])
            lines.append(Line(metric, name, method, classifier, measured[name], seeds, paper, False))
        for group in protocol.groups:
            present = [name for name in group.members if name in measured]
            if present:
                lines.append(
                    Line(
                        metric,
                        group.name if len(present) == len(group.members)
                        else f"{group.name} ({len(present)} of {len(group.members)})",
                        method,
                        classifier,
                        average([measured[name] for name in present]),
                        min(len(by_subject[name]) for name in present),
                        _paper_group(protocol, metric, group.name, group.members, present, method, classifier),
                        True,
                    )
                )  # fmt: skip
    return lines


def markdown(lines: Sequence[Line]) -> str:
    """The table as Markdown, a heading a metric."""
    parts = []
    for metric in dict.fromkeys(line.metric for line in lines):
        chosen = [line for line in lines if line.metric == metric]
        rows = [("subject", "method", "classifier", "measured", "seeds", "paper", "difference")]
        for line in chosen:
            difference = "" if line.paper is None else f"{line.measured.mean - line.paper.mean:+.1f}"
            emphasis = "**" if line.is_group else ""
            rows.append(
                (
                    f"{emphasis}{line.subject}{emphasis}", line.method, line.classifier, written(line.measured),
                    str(line.seeds), "" if line.paper is None else written(line.paper), difference,
                )
            )  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        text = [_row(row, widths) for row in rows]
        text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        parts.append(f"{metric}, percent\n\n" + "\n".join(text) + "\n")
    return "\n".join(parts)


def written(figure: Figure) -> str:
    """``95.2 ± 0.3``, or ``95.2`` where there is no deviation."""
    return f"{figure.mean:.1f}" + ("" if figure.deviation is None else f" ± {figure.deviation:.1f}")


def write(folder: Path, lines: Sequence[Line], title: str) -> None:
    """Write table.csv, table.md and table.png; those that are there are replaced one by one."""
    with tempfile.TemporaryDirectory(prefix=".table-", dir=folder) as name:
        staging = Path(name)
        with (staging / TABLE_CSV).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for line in lines:
                paper = line.paper or (None, None)
                writer.writerow([*line[:4], *line.measured, line.seeds, *paper])
        (staging / TABLE_MARKDOWN).write_text(f"# {title}\n\n{markdown(lines)}", encoding="utf-8")
        plot(lines, title).savefig(staging / PLOT, dpi=DOTS_PER_INCH)
        for file_name in (TABLE_CSV, TABLE_MARKDOWN, PLOT):
            (staging / file_name).replace(folder / file_name)


def plot(lines: Sequence[Line], title: str) -> Plot:
    """A panel a metric: what was measured as dots with their deviation, the paper's as open diamonds beside them."""
    metrics = list(dict.fromkeys(line.metric for line in lines))
    subjects = list(dict.fromkeys(line.subject for line in lines))
    kinds = list(dict.fromkeys((line.method, line.classifier) for line in lines))
    width = max(LEAST_INCHES, INCHES_PER_SUBJECT * len(subjects) * max(1, len(kinds) / 3) + 2)
    figure = Plot(figsize=(width, 4 * len(metrics)), layout="constrained")
    for axes, metric in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
        for number, (method, classifier) in enumerate(kinds):
            chosen = [
                line for line in lines if (line.metric, line.method, line.classifier) == (metric, method, classifier)
            ]
            shift = SPREAD * ((number + 0.5) / len(kinds) - 0.5)
            places = [subjects.index(line.subject) + shift for line in chosen]
            colour = f"C{number % 10}"
            axes.errorbar(
                places, [line.measured.mean for line in chosen], [line.measured.deviation or 0 for line in chosen],
                fmt="o", color=colour, capsize=2, label=f"{method}, {classifier}",
            )  # fmt: skip
            known = [(place, line.paper.mean) for place, line in zip(places, chosen, strict=True) if line.paper]
            if known:
                axes.plot(*zip(*known, strict=True), "D", color=colour, fillstyle="none")
        axes.set_xticks(range(len(subjects)), subjects, rotation=45, ha="right")
        axes.set(ylabel=f"{metric} (percent)")
        axes.grid(axis="y", color="#dddddd")
    figure.axes[0].set_title(f"{title} (diamonds: the paper)")
    figure.axes[0].legend(fontsize=8)
    return figure


def _over_seeds(values: Sequence[float]) -> Figure:
    return Figure(fmean(values), stdev(values) if len(values) > 1 else None)


def _paper(protocol: Protocol, metric: str, subject: str, method: str, classifier: str) -> Figure | None:
    row, column = METHODS[method].paper, CLASSIFIERS[classifier].paper
    if row is None or column is None:
        return None
    return paper_figures().get(Key(protocol.paper_datasets[metric], subject, row, column))


def _paper_group(
    protocol: Protocol,
    metric: str,
    group: str,
    members: Sequence[str],
    present: Sequence[str],
    method: str,
    classifier: str,
) -> Figure | None:
    each = [_paper(protocol, metric, name, method, classifier) for name in present]
    known = [figure for figure in each if figure is not None]
    if len(present) < len(members) and len(known) == len(present):
        return average(known)
    return _paper(protocol, metric, group, method, classifier)


def _row(values: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(value.ljust(width) for value, width in zip(values, widths, strict=True)) + " |"
