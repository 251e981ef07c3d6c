"""What is trained on, fitted on and scored, and every analysis from end to end at the smallest size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.training.reproduction.support import small, write_fashion_mnist
from training.analysis import report
from training.analysis.definitions import ANALYSES, CLASSIFIERS
from training.analysis.protocol import Variations, projection
from training.data import DataError
from training.pretext import Contrastive, ContrastiveConfiguration, Rotation, RotationConfiguration, RotNetConfiguration
from training.reproduction.datasets import Labelled, Split
from training.reproduction.protocol import Trial
from training.reproduction.semantic import Semantic
from training.reproduction.study import Cell, Study
from training.reproduction.workers import run_study

TRAIN = 110  # images of each class
VALUES = {"training-set-size": ("50", "whole")}  # of the others the first two
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fashion_mnist(tmp_path_factory.mktemp("fashion"), TRAIN)


@pytest.fixture(scope="module")
def protocol(fashion: Path) -> Variations:
    return Variations(fashion, small(steps=2), ("3",), "fashion-mnist")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One study of all analyses."""
    return tmp_path_factory.mktemp("study")


def run(study: Study) -> int:
    """How many trainings it took."""
    with study.opened():
        missing = len(study.missing())
        assert run_study(study, [CPU], 1, lambda event: None) == []
    return missing


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_from_end_to_end(name: str, protocol: Variations, folder: Path) -> None:
    analysis = ANALYSES[name]
    values = VALUES.get(name, analysis.values[:2])
    points = analysis.points(analysis.methods, values)
    study = Study(protocol, tuple(dict.fromkeys(point.variant for point in points)), tuple(CLASSIFIERS), 1, folder)
    for trial in study.trials:
        protocol.check(trial)
    run(study)
    rows = report.tabulate(protocol, name, points, study.cells())
    assert {(row.method, row.value, row.classifier) for row in rows} == {
        (method, value, classifier)
        for method in analysis.methods for value in values for classifier in analysis.classifiers
    }  # fmt: skip
    assert all(0 <= row.auroc.mean <= 100 for row in rows)
    assert run(study) == 0
    report.write(folder, name, rows, name)
    assert all((folder / f"{name}.{ending}").stat().st_size > 100 for ending in ("csv", "md", "png"))


def test_f_is_what_the_tables_measure_and_g_of_rotnet_is_f(protocol: Variations, tmp_path: Path) -> None:
    table = Semantic(protocol.data, protocol.size, protocol.subjects, protocol.dataset)
    [cell] = measured(Study(table, ("rotnet",), ("kernel_density",), 1, tmp_path / "table"))
    f, g = measured(Study(protocol, ("rotnet",), ("f", "g"), 1, tmp_path / "analysis"))
    assert f.figures["auroc"] == pytest.approx(cell.figures["auroc"], abs=1e-6)
    assert dict(g.figures) == dict(f.figures)


def test_outliers_are_of_other_classes_and_make_up_their_share(protocol: Variations) -> None:
    images, own = protocol.training(Trial("3", "rotation contamination 10", 0))
    assert (len(images), int(own.sum())) == (TRAIN + 12, TRAIN)  # 12 of 122 are 10 percent
    everything, labels = protocol.split.train
    label_of = {image.tobytes(): label for image, label in zip(everything, labels, strict=True)}
    found = np.array([label_of[image.tobytes()] for image in images])
    np.testing.assert_array_equal(found == 3, own)
    assert len({image.tobytes() for image in images}) == len(images)


def test_fewer_images_are_drawn_by_the_seed(protocol: Variations) -> None:
    whole = {image.tobytes() for image in protocol.train_images(Trial("3", "rotation", 0))}
    draws = [protocol.train_images(Trial("3", "rotation training-set-size 50", seed)) for seed in (0, 0, 1)]
    assert all({image.tobytes() for image in images} < whole and len(images) == 50 for images in draws)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert draws[0].tobytes() != draws[2].tobytes()


def test_turned_images_are_the_same_ones_in_all_four_turns(protocol: Variations) -> None:
    upright = protocol.train_images(Trial("3", "rotation", 0))
    turned = protocol.train_images(Trial("3", "rotation random-rotation turned", 0))
    matches = [(np.rot90(upright, turn, axes=(1, 2)) == turned).all(axis=(1, 2, 3)) for turn in range(4)]
    assert np.sum(matches, axis=0).tolist() == [1] * TRAIN
    assert all(np.count_nonzero(match) > TRAIN / 8 for match in matches)


def test_test_images_are_turned_too(protocol: Variations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def represent(images: NDArray[np.uint8], *rest: object) -> dict[str, NDArray[np.float32]]:
        seen.append(images)
        return {name: np.random.default_rng(0).normal(size=(len(images), 4)).astype(np.float32) for name in "fg"}

    monkeypatch.setattr("training.analysis.protocol._represent", represent)
    run(Study(protocol, ("rotnet", "rotation random-rotation turned"), ("f",), 1, tmp_path))
    test = protocol.test_images().images
    np.testing.assert_array_equal(seen[1], test)
    matches = [(np.rot90(test, turn, axes=(1, 2)) == seen[3]).all(axis=(1, 2, 3)) for turn in range(4)]
    assert np.any(matches, axis=0).all()
    assert all(np.count_nonzero(match) for match in matches)


def test_clean_images_are_the_class_s_own(protocol: Variations) -> None:
    own = np.arange(200) % 2 == 0
    for seed in (0, 1):
        few, more, all_ = (
            protocol.fitted_on(CLASSIFIERS[name], own, seed) for name in ("f_clean_50", "f_clean_100", "f")
        )
        assert (len(set(few)), len(set(more)), len(set(all_))) == (50, 100, 200)
        assert own[few].all()
        assert own[more].all()
        assert set(few) < set(more)


def test_g_is_all_of_a_contrastive_head_and_all_but_the_classifier_of_rotation_s() -> None:
    contrastive = Contrastive(ContrastiveConfiguration(head_depth=2, head_width=16, head_outputs=8), 12, 32)
    rotation = Rotation(RotationConfiguration(head_depth=2, head_width=16), 12, 32)
    for task, outputs in ((contrastive, 8), (rotation, 16)):
        assert projection(task)(torch.randn(5, 12)).shape == (5, outputs)
    features = torch.randn(5, 12)
    assert projection(Rotation(RotNetConfiguration(), 12, 32))(features) is features
    torch.testing.assert_close(rotation.head[-1](projection(rotation)(features)), rotation.head(features))


@pytest.mark.parametrize(
    ("method", "mentions"),
    [
        ("rotation training-set-size 250", "needs 250 training images of class 3; there are 110"),
        ("rotation contamination 10", "needs 12 training images of other classes than 3; there are 0"),
    ],
)
def test_too_few_images_are_refused(
    method: str, mentions: str, protocol: Variations, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "contamination" in method:
        train, test = protocol.split
        only = Split(Labelled(train.images[train.labels == 3], train.labels[train.labels == 3]), test)
        monkeypatch.setattr(Variations, "split", only)
    with pytest.raises(DataError, match=mentions):
        protocol.check(Trial("3", method, 0))


def measured(study: Study) -> list[Cell]:
    run(study)
    return study.cells()
