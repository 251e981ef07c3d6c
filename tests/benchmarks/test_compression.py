"""The study of small densities: what it says of exact is what an evaluation says, and it goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compression
from benchmarks.compression import Setting, report, settings, study
from benchmarks.embedded import Embedded, find_data
from models.densities import KernelDensity
from models.detector import Detector
from tests.benchmarks.tiny import CATEGORY, FITTING, WHOLE, make_data, make_detector
from training.data import DataError, open_dataset
from training.evaluation import evaluate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("study") / "data")


@pytest.fixture(scope="module")
def detector(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return make_detector(data, tmp_path_factory.mktemp("run"))


def test_exact_is_what_an_evaluation_measures(detector: Detector, data: Path, tmp_path: Path) -> None:
    ground = Embedded(detector, data, tmp_path / "tile")
    assert ground.bank.shape == (WHOLE, detector.scan.members[0].encoder.dimension)
    wanted = [
        Setting("random", WHOLE),
        Setting("random", 20),
        Setting("compressed", 100),
        Setting("compressed", 100, 8),
    ]
    [exact, same, small, compressed, reduced] = study(ground, wanted)
    expected = evaluate(detector, open_dataset(data, "tile"), tmp_path / "report")
    assert exact["image_auroc"] == pytest.approx(100 * expected["image_auroc"], abs=0.01)
    assert exact["pixel_auroc"] == pytest.approx(100 * expected["pixel_auroc"], abs=0.01)
    assert (same["image_change"], same["pixel_change"]) == pytest.approx((0, 0), abs=0.01)
    assert same["largest_difference"] < 1e-5
    assert same["largest_difference"] < small["largest_difference"]
    for line in (compressed, reduced):
        assert 1e-5 < line["deviation"] < small["deviation"]
    assert len(report([exact, same, small]).splitlines()) == 2 + 2 + 2
    assert small["pixel_change_interval"][0] < small["pixel_change_interval"][1]


def test_it_goes_on_where_it_was(
    detector: Detector, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Setting("random", 20, seed=seed) for seed in range(3)]
    folder = tmp_path / "tile"
    lines = study(Embedded(detector, data, folder), wanted)
    assert lines[1]["banks"] == 3
    assert len(set(lines[1]["pixel_changes"])) == 3
    (folder / "cells" / "random-20-1.json").unlink()
    maps = np.load(folder / "exact.npy")
    maps[2] = np.nan
    np.save(folder / "exact.npy", maps)
    made: list[Setting] = []
    measure = compression.measure

    def measured(ground: Embedded, setting: Setting, *given: Any) -> dict[str, Any]:
        made.append(setting)
        return measure(ground, setting, *given)

    monkeypatch.setattr(compression, "measure", measured)
    again = study(Embedded(detector, data, folder), wanted)
    assert made == [wanted[1]]
    for line in (*lines, *again):
        line.pop("fit_seconds", None)
    assert again == lines


def test_a_folder_of_another_study_is_refused(detector: Detector, data: Path, tmp_path: Path) -> None:
    Embedded(detector, data, tmp_path / "tile")
    with pytest.raises(DataError, match="name another folder"):
        Embedded(detector, data, tmp_path / "tile", limit=3)


def test_a_copy_of_a_good_image_is_not_in_the_bank(data: Path, tmp_path: Path) -> None:
    """As it is not in the detector's."""
    copied = shutil.copytree(data, tmp_path / "data")
    good = copied / CATEGORY / "train" / "good"
    for path in sorted(good.iterdir()):
        shutil.copy(path, good / f"{path.stem}_copy.png")
    detector = make_detector(copied, tmp_path / "run")
    ground = Embedded(detector, copied, tmp_path / "tile")
    density = detector.scan.members[0].density
    assert isinstance(density, KernelDensity)
    assert len(ground.bank) == WHOLE == len(density.bank)


def test_part_of_the_images_and_of_their_windows(detector: Detector, data: Path, tmp_path: Path) -> None:
    ground = Embedded(detector, data, tmp_path / "tile", limit=5, part=10 * FITTING)
    assert len(ground.test) == len(ground.labels) <= 5
    assert len(ground.bank) == 10 * FITTING
    assert 0 < ground.labels.mean() < 1
    assert json.loads((tmp_path / "tile" / "study.json").read_text())["limit"] == 5


def test_every_setting_once_a_seed() -> None:
    wanted = settings((1024, 2048), (0, 64), 2)
    assert len(wanted) == len(set(wanted)) == 2 * (2 + 4)
    assert [setting.seed for setting in wanted] == [0] * 6 + [1] * 6
    assert "compressed-2048-pca64" in {setting.title for setting in wanted}


def test_data_sets_are_looked_for_in_several_folders(data: Path, tmp_path: Path) -> None:
    assert find_data([tmp_path, data], "tile") == data
    with pytest.raises(DataError, match="lid is in none of"):
        find_data([tmp_path, data], "lid")
