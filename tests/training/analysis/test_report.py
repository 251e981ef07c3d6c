"""The arithmetic of an analysis's table, worked out by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from tests.training.reproduction.support import small
from training.analysis.definitions import ANALYSES
from training.analysis.protocol import Variations
from training.analysis.report import Row, correlations, markdown, plot, tabulate, write
from training.reproduction.protocol import Trial
from training.reproduction.study import Cell

FASHION = Variations(Path(), small(), ("0", "1"), "fashion-mnist")


def cell(method: str, classifier: str, auroc: float, mmd: float = 0.25, subject: str = "0", seed: int = 0) -> Cell:
    figures = {"auroc": auroc, "squared_mmd": mmd}
    return Cell(Trial(subject, method, seed), classifier, figures, 100, 10, 1.0, "cpu")


def rows_of(name: str, cells: list[Cell], protocol: Variations = FASHION) -> list[Row]:
    analysis = ANALYSES[name]
    return tabulate(protocol, name, analysis.points(analysis.methods, analysis.values), cells)


def test_values_stand_below_each_other_and_other_analyses_out() -> None:
    cells = [
        cell("contrastive batch-size 32", "f", 90.0), cell("contrastive batch-size 8", "f", 80.0),
        cell("contrastive batch-size 8", "g", 70.0), cell("contrastive batch-size 8", "f_clean_50", 1.0),
        cell("contrastive", "f", 99.0), cell("rotation", "f", 99.0),
    ]  # fmt: skip
    rows = rows_of("batch-size", cells)
    assert [(row.subject, row.value, row.classifier, row.auroc.mean) for row in rows] == [
        ("0", "8", "f", 80.0), ("0", "32", "f", 90.0), ("0", "8", "g", 70.0),
    ]  # fmt: skip
    assert [row.paper and row.paper.mean for row in rows] == [None, 93.3, None]


def test_seeds_and_classes_are_averaged() -> None:
    cells = [
        cell("rotation", "f", 90.0, 0.3, seed=0), cell("rotation", "f", 94.0, 0.1, seed=1),
        cell("rotation", "f", 70.0, -0.01, subject="1"),
    ]  # fmt: skip
    zero, one, mean = rows_of("representation", cells)
    assert tuple(zero.auroc) == pytest.approx((92.0, 8**0.5))
    assert zero.log_mmd == pytest.approx(math.log(math.sqrt(0.2)))
    assert (zero.seeds, one.seeds, mean.seeds) == (2, 1, 1)
    assert one.log_mmd is None  # an unbiased estimate may be below zero
    assert (mean.subject, mean.auroc.mean) == ("mean (2 of 10)", 81.0)


def test_what_the_paper_says_in_its_text_stands_beside_an_average() -> None:
    cifar = Variations(Path(), small(), ("airplane", "bird"), "cifar10")
    cells = [
        cell(f"{method} random-rotation turned", "f", 60.0, subject=subject)
        for method in ("rotation", "distribution_augmented", "contrastive") for subject in ("airplane", "bird")
    ]  # fmt: skip
    found = {(row.method, row.subject): row.paper for row in rows_of("random-rotation", cells, cifar)}
    assert {key: paper.mean for key, paper in found.items() if paper} == {
        ("rotation", "mean (2 of 10)"): 60.7, ("distribution_augmented", "mean (2 of 10)"): 92.4,
    }  # fmt: skip


def uniformity() -> list[Cell]:
    """AUROC of g rises by 3 with each unit of log MMD of g, that of f falls by 2; f's own MMD plays no part."""
    return [
        cell(f"contrastive batch-size {batch}", classifier, auroc, math.exp(2 * distance) if classifier == "g" else 1.0)
        for distance, batch in ((-1.0, 8), (-2.0, 32), (-4.0, 512))
        for classifier, auroc in (("f", 50 - 2 * distance), ("g", 80 + 3 * distance))
    ]


def test_correlation_over_models() -> None:
    found = correlations("uniformity", rows_of("uniformity", uniformity()))
    assert [(line.representation, round(line.value, 6), line.models, line.paper) for line in found] == [
        ("f", -1.0, 3, 0.774), ("g", 1.0, 3, 0.914),
    ]  # fmt: skip
    assert correlations("uniformity", rows_of("uniformity", uniformity()[:4])) == []  # of two models
    assert correlations("batch-size", rows_of("batch-size", uniformity())) == []
    same = [cell(f"contrastive batch-size {batch}", "g", 70.0) for batch in (8, 32, 512)]
    assert correlations("uniformity", rows_of("uniformity", same)) == []


def test_files_hold_the_table(tmp_path: Path) -> None:
    rows = rows_of("uniformity", uniformity())
    write(tmp_path, "uniformity", rows, "title")
    with (tmp_path / "uniformity.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["value"], line["classifier"]) for line in lines[:4]] == [
        ("batch-size 8", "f"), ("batch-size 32", "f"), ("batch-size 512", "f"), ("batch-size 8", "g"),
    ]  # fmt: skip
    assert [float(line["log_mmd"]) for line in lines[3:]] == pytest.approx([-1, -2, -4])
    text = (tmp_path / "uniformity.md").read_text()
    assert text.startswith("# title\n\nhow far embeddings are")
    assert "- 0: correlation of log MMD of g with AUROC of g, over 3 models: 1.000 (paper: 0.914)" in text
    assert "(paper:" not in markdown("batch-size", rows_of("batch-size", uniformity()))


def test_the_plot_has_the_figures_in_their_places() -> None:
    drawn = plot("uniformity", rows_of("uniformity", uniformity()), "title").axes[0]
    f, g = (line for line in drawn.lines if line.get_marker() == "o")
    np.testing.assert_allclose(np.asarray(f.get_xdata(), float), [-1, -2, -4])
    np.testing.assert_allclose(np.asarray(g.get_xdata(), float), [-1, -2, -4])
    np.testing.assert_allclose(np.asarray(g.get_ydata(), float), [77, 74, 68])
    values = plot("batch-size", rows_of("batch-size", uniformity()), "title").axes[0]
    assert [tick.get_text() for tick in values.get_xticklabels()] == ["8", "32", "512"]
    assert [np.asarray(line.get_ydata()).tolist() for line in values.lines if line.get_marker() == "D"] == [[93.3]]
    one = plot("representation", rows_of("representation", [cell("rotation", c, 90.0) for c in "fg"]), "title").axes[0]
    assert [tick.get_text() for tick in one.get_xticklabels()] == ["f", "g"]
