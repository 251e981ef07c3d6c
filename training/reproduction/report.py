"""The tables of a study beside the paper's: what was measured over seeds, per subject and on average."""

from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure as Plot
from matplotlib.lines import Line2D

from training.reproduction.paper import Figure, Key, average, paper_figures
from training.reproduction.protocol import Group, Protocol
from training.reproduction.study import Cell

TABLE = "table"
COLUMNS = (
    "metric",
    "method",
    "classifier",
    "subject",
    "auroc",
    "deviation",
    "seeds",
    "paper",
    "paper_deviation",
    "same_subjects",
)
DOTS_PER_INCH = 110
# Of the plot, in inches: for each subject, and for each of its points; the panels; the legend; a letter of the title.
SUBJECT, POINT, PANEL_WIDTH, PANEL_HEIGHT, LEGEND_WIDTH, LEGEND_LINE, LETTER = 1.2, 0.08, 15.0, 3.5, 2.5, 0.17, 0.09
SPREAD = 0.8  # of the space between two subjects that their points take
COLOURS = [matplotlib.colormaps["tab20"](number) for number in (*range(0, 20, 2), *range(1, 20, 2))]  # the bold first
MARKERS = "os^v<>PX*ph8"  # no diamond: those are the paper's


class Kind(NamedTuple):
    """What is measured, and of what."""

    metric: str
    method: str
    classifier: str


class Line(NamedTuple):
    """One line of a table, in percent.

    Attributes:
        subject: a class or category, or the name of a group with how many of it were measured.
        seeds: trainings behind the figure; the fewest of any subject for a group.
        paper: what the paper reports for it; None where it reports nothing.
        is_same: whether the paper's figure is over the same subjects, so that the two may be compared.
        is_group: whether it is an average over subjects.
    """

    metric: str
    method: str
    classifier: str
    subject: str
    measured: Figure
    seeds: int
    paper: Figure | None
    is_same: bool
    is_group: bool


def tabulate(protocol: Protocol, cells: Sequence[Cell]) -> list[Line]:
    """Every metric, method and classifier: the subjects measured, then the groups.

    A deviation is the sample's, over seeds. A group is the average of its subjects, its deviation the average of
    theirs, as in the paper. Where only some of a group were measured, its line says how many, and the paper's figure
    beside it is the average over the same ones, or, where the paper gives none for each, over all.
    """
    values: dict[Kind, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for metric, value in cell.figures.items():
            values[Kind(metric, cell.trial.method, cell.classifier)][cell.trial.subject].append(value)
    order = {
        name: place for place, name in enumerate((*protocol.paper_datasets, *protocol.methods, *protocol.classifiers))
    }
    kinds = sorted(values, key=lambda kind: [order[name] for name in kind])
    return [line for kind in kinds for line in _lines(protocol, kind, values[kind])]


def _lines(protocol: Protocol, kind: Kind, values: Mapping[str, Sequence[float]]) -> Iterator[Line]:
    """The lines of one metric, method and classifier, of which ``values`` has each subject's figures."""
    subjects = [name for name in protocol.groups[-1].members if name in values]
    measured = {name: _over_seeds(values[name]) for name in subjects}
    for name in subjects:
        yield Line(*kind, name, measured[name], len(values[name]), _paper(protocol, kind, name), True, False)
    for group in protocol.groups:
        present = [name for name in group.members if name in measured]
        if present:
            whole = len(present) == len(group.members)
            label = group.name if whole else f"{group.name} ({len(present)} of {len(group.members)})"
            figure = average([measured[name] for name in present])
            seeds = min(len(values[name]) for name in present)
            yield Line(*kind, label, figure, seeds, *_paper_group(protocol, kind, group, present), True)


def markdown(lines: Sequence[Line]) -> str:
    """The table as Markdown, a heading a metric."""
    parts = []
    for metric in dict.fromkeys(line.metric for line in lines):
        chosen = [line for line in lines if line.metric == metric]
        rows = [("subject", "method", "classifier", "measured", "seeds", "paper", "difference")]
        for line in chosen:
            comparable = line.paper if line.is_same else None
            difference = "" if comparable is None else f"{line.measured.mean - comparable.mean:+.1f}"
            emphasis = "**" if line.is_group else ""
            rows.append(
                (
                    f"{emphasis}{line.subject}{emphasis}", line.method, line.classifier, written(line.measured),
                    str(line.seeds), "" if line.paper is None else written(line.paper), difference,
                )
            )  # fmt: skip
        parts.append(f"{metric}, percent\n\n{aligned(rows)}")
    return "\n".join(parts)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that reads well as text too; its first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [_row(row, widths) for row in rows]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text) + "\n"


def written(figure: Figure) -> str:
    """``95.2 ± 0.3``, or ``95.2`` where there is no deviation."""
    return f"{figure.mean:.1f}" + ("" if figure.deviation is None else f" ± {figure.deviation:.1f}")


def to_json(line: NamedTuple) -> dict[str, Any]:
    """A line of a table, ready for JSON: its figures as mean and deviation."""
    return {name: value._asdict() if isinstance(value, Figure) else value for name, value in line._asdict().items()}


def write(folder: Path, lines: Sequence[Line], title: str) -> None:
    """Write table.csv, table.md and table.png."""
    rows = [[*line[:4], *line.measured, line.seeds, *(line.paper or (None, None)), line.is_same] for line in lines]
    write_table(folder, TABLE, [COLUMNS, *rows], f"# {title}\n\n{markdown(lines)}", plot(lines, title))


def write_table(folder: Path, name: str, rows: Sequence[Sequence[object]], text: str, figure: Plot) -> None:
    """Write a table as CSV, Markdown and a plot, each under ``name``; those that are there are replaced one by one."""
    with tempfile.TemporaryDirectory(prefix=".table-", dir=folder) as staging:
        table, document, picture = (Path(staging) / f"{name}.{ending}" for ending in ("csv", "md", "png"))
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        document.write_text(text, encoding="utf-8")
        figure.savefig(picture, dpi=DOTS_PER_INCH)
        for path in (table, document, picture):
            path.replace(folder / path.name)


def plot(lines: Sequence[Line], title: str) -> Plot:
    """Panels of each metric: what was measured with its deviation, the paper's as open diamonds beside it.

    A method is a colour, a classifier a shape. Subjects that are too many for one panel go on in the next one below.
    """
    metrics = list(dict.fromkeys(line.metric for line in lines))
    subjects = list(dict.fromkeys(line.subject for line in lines))
    pairs = list(dict.fromkeys((line.method, line.classifier) for line in lines))
    colours = dict(zip(dict.fromkeys(method for method, _ in pairs), cycle(COLOURS), strict=False))
    markers = dict(zip(dict.fromkeys(classifier for _, classifier in pairs), cycle(MARKERS), strict=False))
    space = max(SUBJECT, POINT * len(pairs))
    in_row = min(len(subjects), max(1, int(PANEL_WIDTH / space)))
    panels = list(product(metrics, (subjects[at : at + in_row] for at in range(0, len(subjects), in_row))))
    legend = [
        *(Line2D([], [], color=colour, linewidth=4, label=method) for method, colour in colours.items()),
        *(Line2D([], [], color="black", marker=marker, linestyle="", label=name) for name, marker in markers.items()),
        Line2D([], [], color="black", marker="D", fillstyle="none", linestyle="", label="the paper's"),
    ]
    width = max(LETTER * len(title), in_row * space) + LEGEND_WIDTH
    height = max(PANEL_HEIGHT * len(panels), LEGEND_LINE * (len(legend) + 2))
    figure = Plot(figsize=(width, height), layout="constrained")
    for axes, (metric, row) in zip(figure.subplots(len(panels), squeeze=False, sharey=True)[:, 0], panels, strict=True):
        for number, (method, classifier) in enumerate(pairs):
            chosen = [
                line
                for line in lines
                if (line.metric, line.method, line.classifier) == (metric, method, classifier) and line.subject in row
            ]
            shift = SPREAD * ((number + 0.5) / len(pairs) - 0.5)
            places = [row.index(line.subject) + shift for line in chosen]
            colour = colours[method]
            axes.errorbar(
                places, [line.measured.mean for line in chosen], [line.measured.deviation or 0 for line in chosen],
                fmt=markers[classifier], color=colour, markersize=5, capsize=2,
            )  # fmt: skip
            known = [(place, line.paper.mean) for place, line in zip(places, chosen, strict=True) if line.paper]
            if known:
                axes.plot(*zip(*known, strict=True), "D", color=colour, fillstyle="none")
        axes.set_xticks(range(len(row)), row)
        axes.set_xticks([place + 0.5 for place in range(len(row))], minor=True)
        axes.set(xlim=(-0.5, in_row - 0.5), ylabel=f"{metric} (percent)")
        axes.tick_params("x", which="minor", length=0)
        axes.grid(axis="y", color="#dddddd")
        axes.grid(axis="x", which="minor", color="#dddddd")
    figure.axes[0].set_title(title, loc="left")
    figure.legend(handles=legend, loc="outside right upper", fontsize=8)
    return figure


def _over_seeds(values: Sequence[float]) -> Figure:
    return Figure(fmean(values), stdev(values) if len(values) > 1 else None)


def _paper(protocol: Protocol, kind: Kind, subject: str) -> Figure | None:
    dataset = protocol.paper_datasets[kind.metric]
    row, column = protocol.methods[kind.method].paper, protocol.classifiers[kind.classifier].paper
    if dataset is None or row is None or column is None:
        return None
    return paper_figures().get(Key(dataset, subject, row, column))


def _paper_group(protocol: Protocol, kind: Kind, group: Group, present: Sequence[str]) -> tuple[Figure | None, bool]:
    """The paper's average for a group, and whether it is over those that are present and no others."""
    each = [_paper(protocol, kind, name) for name in present]
    known = [figure for figure in each if figure is not None]
    whole = len(present) == len(group.members)
    if not whole and len(known) == len(present):
        return average(known), True
    return _paper(protocol, kind, group.name), whole


def _row(values: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(value.ljust(width) for value, width in zip(values, widths, strict=True)) + " |"
