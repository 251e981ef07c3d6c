"""Members of an ensemble are trained on the same images, and calibrated together on the same others."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from models.configuration import DetectorConfiguration
from models.densities import KernelDensity
from models.detector import Detector
from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry
from models.images import read_image
from models.scan import Ensemble, Scan
from training.data import open_dataset
from training.fit import FitConfiguration, fit
from training.pretext import CutPasteConfiguration, RotationConfiguration
from training.run_files import CHECKPOINT_FILE, LOG_FILE
from training.trainer import Progress, TrainingConfiguration, TrainingError, TrainingInterrupted

IMAGES = 12
CUTPASTE = CutPasteConfiguration(head_depth=1, head_width=8)
ROTATION = RotationConfiguration(head_depth=1, head_width=8)
ALONE = FitConfiguration(
    detector=DetectorConfiguration(
        geometry=ScanGeometry(image_size=64), encoder=DensePatchConfiguration(width=2)
    ),
    training=TrainingConfiguration(pretext=CUTPASTE, steps=3, batch_size=4, crop_patches=1, log_steps=1, seed=7),
    bank_size=90,
)  # fmt: skip
PAIR = ALONE.model_copy(update={"ensemble": 2})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain folder of good images."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index:02d}.png")
    return folder


def run_fit(
    data: Path, folder: Path, configuration: FitConfiguration, reports: list[Progress] | None = None
) -> Detector:
    report = None if reports is None else reports.append
    dataset = open_dataset(data, "cap")
    return fit(dataset, configuration, device=torch.device("cpu"), folder=folder, report=report).detector


@pytest.fixture(scope="module")
def pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return run_fit(data, tmp_path_factory.mktemp("pair"), PAIR)


def same(one: Scan, other: Scan) -> bool:
    """Whether two members learned the same."""

    def learned(scan: Scan) -> dict[str, torch.Tensor]:
        assert isinstance(scan.density, KernelDensity)
        return {**scan.encoder.state_dict(), "bank": scan.density.bank.vectors}

    state, other_state = learned(one), learned(other)
    return all(torch.equal(state[name], other_state[name]) for name in state)


def images(data: Path) -> NDArray[np.uint8]:
    return np.stack([read_image(path) for path in sorted(data.iterdir())])


def test_members_are_of_the_seeds_and_pretext_tasks_that_are_asked_for() -> None:
    configuration = ALONE.model_copy(update={"ensemble": 2, "pretexts": (ROTATION,)})
    assert [(member.pretext, member.seed) for member in configuration.members] == [
        (CUTPASTE, 7), (CUTPASTE, 8), (ROTATION, 7), (ROTATION, 8),
    ]  # fmt: skip
    assert {member.steps for member in configuration.members} == {3}
    assert ALONE.members == (ALONE.training,)


def test_the_same_pretext_task_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="one is there twice"):
        FitConfiguration(training=TrainingConfiguration(pretext=CUTPASTE), pretexts=(ROTATION, CUTPASTE))


def test_a_member_is_what_training_alone_gives(data: Path, pair: Detector, tmp_path: Path) -> None:
    first, second = pair.scan.members
    assert same(first, run_fit(data, tmp_path / "alone", ALONE).scan.members[0])
    assert not same(first, second)


def test_an_ensemble_is_calibrated_as_itself_on_images_that_no_member_has_seen(data: Path, pair: Detector) -> None:
    assert isinstance(pair.scan, Ensemble)
    score_maps, anomaly_maps = pair.scan.maps(images(data))
    scores = score_maps.max(axis=(1, 2)).astype(np.float64)
    held_out = np.isin(scores, pair.calibration.image_scores)
    assert held_out.sum() == len(pair.calibration) == IMAGES - pair.training["good_images"]
    maxima = anomaly_maps.max(axis=(1, 2))[held_out]
    np.testing.assert_allclose(np.sort(maxima), np.sort(pair.calibration.map_maxima), rtol=0, atol=1e-6)
    # A bank holds windows of every image that was learned from, and of no other.
    for member in pair.scan.members:
        assert isinstance(member.density, KernelDensity)
        bank = {row.tobytes() for row in member.density.bank.vectors.numpy()}
        embeddings = [member.embed(image[None]).flatten(0, 2).numpy() for image in images(data)]
        seen = np.array([any(row.tobytes() in bank for row in rows) for rows in embeddings])
        np.testing.assert_array_equal(seen, ~held_out)


def test_a_finished_member_is_not_trained_again(data: Path, pair: Detector, tmp_path: Path) -> None:
    class Stopping(list[Progress]):
        def append(self, progress: Progress) -> None:
            super().append(progress)
            if len(self) == 4:  # the second member's first step
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        run_fit(data, tmp_path, PAIR, Stopping())
    reports: list[Progress] = []
    resumed = run_fit(data, tmp_path, PAIR, reports)
    assert [progress.step for progress in reports] == [2, 3]
    assert all(same(one, other) for one, other in zip(resumed.scan.members, pair.scan.members, strict=True))
    assert resumed.operating_point == pair.operating_point


def test_a_run_of_one_grows_into_an_ensemble(data: Path, pair: Detector, tmp_path: Path) -> None:
    run_fit(data, tmp_path, ALONE)
    reports: list[Progress] = []
    grown = run_fit(data, tmp_path, PAIR, reports)
    assert [progress.step for progress in reports] == [1, 2, 3]  # the second alone
    assert all(same(one, other) for one, other in zip(grown.scan.members, pair.scan.members, strict=True))


def test_what_does_not_fit_is_refused_before_any_member_is_trained(data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "member_1" / CHECKPOINT_FILE
    damaged.parent.mkdir()
    damaged.write_bytes(b"torn")
    with pytest.raises(TrainingError, match=r"member_1.*is damaged"):
        run_fit(data, tmp_path, PAIR)
    assert not (tmp_path / LOG_FILE).exists()


def test_a_saved_ensemble_is_what_was_fitted(data: Path, pair: Detector, tmp_path: Path) -> None:
    pair.save(tmp_path)
    loaded = Detector.load(tmp_path, "cpu")
    assert loaded.training["fit"]["ensemble"] == 2
    for before, after in zip(pair.predict(list(images(data))), loaded.predict(list(images(data))), strict=True):
        np.testing.assert_array_equal(before.score_map, after.score_map)
        assert (before.p_value, before.verdict) == (after.p_value, after.verdict)
