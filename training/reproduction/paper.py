"""What the paper reports: Tables 5 and 7 to 12 of Sohn et al., as ``paper_tables.csv`` beside this file holds them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import NamedTuple

TABLES = "paper_tables.csv"
MEAN = "mean"


class Figure(NamedTuple):
    """An AUROC in percent: the mean over seeds and its deviation, None where there is none."""

    mean: float
    deviation: float | None


class Key(NamedTuple):
    """Names a figure as the paper does."""

    dataset: str
    subject: str  # a class, or a group of them such as "mean"
    representation: str
    classifier: str


@cache
def paper_figures() -> Mapping[Key, Figure]:
    """All figures.

    Table 7's means stand aside where Tables 8 to 11 give the mean beside the classes: the two differ for the denoising
    auto-encoder on Cat-vs-Dog (57.3 and 51.0), and only the latter follows from the classes.
    """
    text = files(__package__).joinpath(TABLES).read_text(encoding="utf-8")
    rows = sorted(csv.DictReader(text.splitlines()), key=lambda row: int(row["table"]))
    return {
        Key(row["dataset"], row["class"], row["representation"], row["classifier"]): Figure(
            float(row["auc_percent"]), float(row["std"]) if row["std"] else None
        )
        for row in rows
    }


def average(figures: Sequence[Figure]) -> Figure:
    """The mean of means beside the mean of deviations, as the paper's own mean rows are made."""
    deviations = [figure.deviation for figure in figures if figure.deviation is not None]
    whole = len(deviations) == len(figures)
    return Figure(fmean(figure.mean for figure in figures), fmean(deviations) if whole else None)
