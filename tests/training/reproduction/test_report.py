"""The arithmetic of the tables, worked out by hand."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.reproduction.support import small
from training.reproduction.defects import Defects
from training.reproduction.protocol import Protocol, Trial
from training.reproduction.report import Line, markdown, plot, tabulate, write
from training.reproduction.semantic import Semantic
from training.reproduction.study import Cell

FASHION = Semantic(Path(), small(), ("0", "1", "2"), "fashion-mnist")


def cell(subject: str, seed: int, method: str = "rotation", **figures: float) -> Cell:
    return Cell(Trial(subject, method, seed), "kernel_density", figures, 100, 10, 1.0, "cpu")


def only(lines: list[Line], metric: str, subject: str) -> Line:
    [line] = [line for line in lines if (line.metric, line.subject) == (metric, subject)]
    return line


def test_mean_and_deviation_over_seeds_then_over_classes() -> None:
    lines = tabulate(
        FASHION,
        [cell("0", 0, auroc=90.0), cell("0", 1, auroc=94.0), cell("1", 0, auroc=99.0), cell("1", 1, auroc=99.0)],
    )
    assert [line.subject for line in lines] == ["0", "1", "mean (2 of 10)"]
    zero, _, mean = lines
    deviation = 8**0.5  # the sample's: sqrt(((-2)^2 + 2^2) / 1)
    assert tuple(zero.measured) == pytest.approx((92.0, deviation))
    assert tuple(mean.measured) == pytest.approx(((92.0 + 99.0) / 2, deviation / 2))
    assert zero.paper == (95.2, 0.5)
    # Beside an average over some classes stands the paper's over the same: classes 0 and 1 have 95.2 and 99.7.
    assert mean.paper is not None
    assert mean.paper.mean == pytest.approx((95.2 + 99.7) / 2)


def test_an_average_over_all_stands_beside_the_papers_own() -> None:
    lines = tabulate(FASHION, [cell(str(number), 0, auroc=90.0 + number) for number in range(10)])
    mean = only(lines, "auroc", "mean")
    assert mean.measured == (94.5, None)  # one seed has no deviation
    assert mean.paper is not None
    assert mean.paper.mean == 95.8


def test_the_fewest_seeds_are_counted() -> None:
    lines = tabulate(FASHION, [cell("0", 0, auroc=1.0), cell("0", 1, auroc=1.0), cell("1", 0, auroc=1.0)])
    assert [line.seeds for line in lines] == [2, 1, 1]


def test_objects_textures_and_all() -> None:
    mvtec = Defects(Path(), small(), ("bottle", "pill", "tile"))
    found = {"bottle": (90.0, 95.0), "pill": (80.0, 85.0), "tile": (70.0, 75.0)}
    cells = [cell(name, 0, image_auroc=image, pixel_auroc=pixel) for name, (image, pixel) in found.items()]
    lines = tabulate(mvtec, cells)
    assert [line.metric for line in lines] == ["image_auroc"] * 6 + ["pixel_auroc"] * 6
    assert only(lines, "image_auroc", "object (2 of 10)").measured.mean == 85.0
    assert only(lines, "image_auroc", "texture (1 of 5)").measured.mean == 70.0
    assert only(lines, "pixel_auroc", "all (3 of 15)").measured.mean == 85.0
    # The paper gives none for each category, so its figures over all of them stand there.
    assert only(lines, "image_auroc", "object (2 of 10)").paper == (89.0, 2.0)
    assert only(lines, "pixel_auroc", "all (3 of 15)").paper == (93.0, 0.9)
    assert only(lines, "image_auroc", "bottle").paper is None
    # Other categories are behind it than were measured: there is no difference to speak of.
    [row] = [line for line in markdown(lines).splitlines() if "object (2 of 10)" in line and "85.0" in line]
    assert [field.strip() for field in row.split("|")][6:8] == ["89.0 ± 2.0", ""]


def test_methods_that_the_paper_lacks_have_no_figure_of_it() -> None:
    lines = tabulate(FASHION, [cell("0", 0, "cutpaste", auroc=50.0), cell("0", 0, "rotnet", auroc=60.0)])
    assert [(line.method, line.paper is None) for line in lines] == [
        ("rotnet", False), ("rotnet", False), ("cutpaste", True), ("cutpaste", True),
    ]  # fmt: skip


def test_markdown_shows_both_and_the_difference() -> None:
    text = markdown(tabulate(FASHION, [cell("0", 0, auroc=92.94), cell("0", 1, auroc=92.94)]))
    assert text.startswith("auroc, percent\n\n| subject ")
    fields = [[field.strip() for field in line.split("|")[1:-1]] for line in text.splitlines() if " 92.9 " in line]
    assert fields[0] == ["0", "rotation", "kernel_density", "92.9 ± 0.0", "2", "95.2 ± 0.5", "-2.3"]
    assert fields[1][0] == "**mean (1 of 10)**"


def test_files_are_written_and_replaced(tmp_path: Path) -> None:
    lines = tabulate(FASHION, [cell("0", 0, auroc=92.9), cell("1", 0, "cutpaste", auroc=70.0)])
    for title in ("first", "second"):
        write(tmp_path, lines, title)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.md", "table.png"]
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines)
    assert (float(rows[0]["auroc"]), rows[0]["deviation"], float(rows[0]["paper"])) == (92.9, "", 95.2)
    assert (tmp_path / "table.md").read_text().startswith("# second\n\nauroc")
    with Image.open(tmp_path / "table.png") as image:
        assert image.size[0] > 300


def test_the_plot_has_every_figure_and_the_papers() -> None:
    figure = plot(tabulate(FASHION, [cell("0", 0, auroc=92.9), cell("0", 1, auroc=93.9)]), "title")
    drawn = [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines]
    assert any(ys == pytest.approx([93.4, 93.4]) for ys in drawn)
    assert any(ys == pytest.approx([95.2, 95.2]) for ys in drawn)


@pytest.mark.parametrize(
    "protocol", [Semantic(Path(), small(), tuple("0123456789"), "fashion-mnist"), Defects(Path(), small(), ("bottle",))]
)
def test_the_plot_of_every_pair_can_be_read(protocol: Protocol) -> None:
    figures = dict.fromkeys(protocol.paper_datasets, 90.0)
    cells = [
        Cell(Trial(subject, method, 0), classifier, figures, 100, 10, 1.0, "cpu")
        for subject in protocol.subjects
        for method, settings in protocol.methods.items()
        for classifier, density in protocol.classifiers.items()
        if settings.fits(density)
    ]
    figure = plot(tabulate(protocol, cells), "title")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the layout warns where panels have no room
        figure.savefig(io.BytesIO())
    [legend] = figure.legends
    for axes in figure.axes:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert axes.get_window_extent().width > 5 * figure.dpi
    left, bottom, right, top = legend.get_window_extent().extents
    assert 0 <= left < right <= figure.bbox.width
    assert 0 <= bottom < top <= figure.bbox.height
    named = {text.get_text() for text in legend.get_texts()}
    assert named == {*protocol.methods, *protocol.classifiers, "the paper's"}
    keys = [(line.get_color(), line.get_marker()) for line in legend.get_lines()]
    assert len(set(keys)) == len(keys)
    # Every subject has its place, though they lie in several panels.
    shown = [tick.get_text() for axes in figure.axes for tick in axes.get_xticklabels()]
    assert [name for name in shown if name in protocol.subjects] == [*protocol.subjects] * len(figures)


def test_colours_are_methods_and_shapes_classifiers() -> None:
    cells = [
        cell("0", 0, "rotation", auroc=91.0),
        cell("0", 0, "rotnet", auroc=92.0),
        cell("0", 0, "rotation", auroc=93.0)._replace(classifier="gaussian_density"),
    ]
    figure = plot(tabulate(FASHION, cells), "title")
    points = [line for line in figure.axes[0].lines if line.get_marker() != "_"]  # the ends of deviations aside
    styles = {np.asarray(line.get_ydata())[0]: (line.get_color(), line.get_marker()) for line in points}
    (first, dot), (second, same), (third, other) = styles[91.0], styles[92.0], styles[93.0]
    assert (first == third, first == second) == (True, False)
    assert (dot == same, dot == other) == (True, False)
