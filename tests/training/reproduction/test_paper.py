"""The paper's tables as the package carries them."""

from __future__ import annotations

import os
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from training.reproduction.methods import CLASSIFIERS, METHODS
from training.reproduction.paper import MEAN, TABLES, Figure, Key, average, paper_figures

# Of the paper's printed means, those that are further from the mean of its printed classes than rounding explains.
ROUNDING = 0.11


def test_is_the_same_as_its_source() -> None:
    source = Path(os.environ.get("PLUMBLINE_DATA", "../shared/data")).parent / "design" / TABLES
    if not source.exists():
        pytest.skip(f"{source} is not here")
    assert files("training.reproduction").joinpath(TABLES).read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("key", "figure"),
    [
        (Key("Fashion-MNIST", "0", "rotation MLP", "KDE"), (95.2, 0.5)),
        (Key("Fashion-MNIST", "6", "contrastive DistAug", "KDE"), (86.2, None)),
        (Key("CIFAR-10", "airplane", "contrastive DistAug", "KDE"), (91.0, 0.5)),
        (Key("Fashion-MNIST", MEAN, "contrastive DistAug", "GDE"), (95.5, None)),
        (Key("CelebA", MEAN, "RotNet", "KDE"), (77.4, 1.0)),
        (Key("MVTec AD localization", "all", "rotation MLP", "KDE"), (93.0, 0.9)),
    ],
)
def test_figures_are_those_of_the_paper(key: Key, figure: tuple[float, float | None]) -> None:
    found = paper_figures()[key]
    assert found.mean == figure[0]
    assert figure[1] is None or found.deviation == figure[1]


def test_means_follow_from_the_classes() -> None:
    classes: dict[tuple[str, str, str], list[Figure]] = defaultdict(list)
    for key, figure in paper_figures().items():
        if key.subject != MEAN and not key.dataset.startswith("MVTec"):
            classes[key.dataset, key.representation, key.classifier].append(figure)
    assert {dataset: len(figures) for (dataset, *_), figures in classes.items()} == {
        "CIFAR-10": 10, "CIFAR-20": 20, "Fashion-MNIST": 10, "Cat-vs-Dog": 2,
    }  # fmt: skip
    for (dataset, representation, classifier), figures in classes.items():
        printed, computed = paper_figures()[Key(dataset, MEAN, representation, classifier)], average(figures)
        assert computed.mean == pytest.approx(printed.mean, abs=ROUNDING), (dataset, representation, classifier)
        assert printed.deviation is not None
        assert computed.deviation == pytest.approx(printed.deviation, abs=ROUNDING), (dataset, representation)


@pytest.mark.parametrize("kind", ["detection", "localization"])
@pytest.mark.parametrize("row", [("rotation MLP", "KDE"), ("contrastive", "KDE"), ("contrastive DistAug", "KDE")])
def test_all_of_mvtec_follows_from_10_objects_and_5_textures(kind: str, row: tuple[str, str]) -> None:
    objects, textures, printed = (
        paper_figures()[Key(f"MVTec AD {kind}", group, *row)].mean for group in ("object", "texture", "all")
    )
    assert (10 * objects + 5 * textures) / 15 == pytest.approx(printed, abs=ROUNDING)


def test_rows_and_columns_are_names_of_the_paper() -> None:
    representations = {key.representation for key in paper_figures()}
    classifiers = {key.classifier for key in paper_figures()}
    assert {method.paper for method in METHODS.values()} - {None} <= representations
    assert {classifier.paper for classifier in CLASSIFIERS.values()} - {None} <= classifiers
