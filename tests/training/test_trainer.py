"""The trainer: its schedule, its crops, and losses that are not finite."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.trainer_support import (
    GEOMETRY,
    STEPS,
    assert_same_run,
    assert_same_state,
    checkpoint_step,
    log_lines,
    make_configuration,
    make_trainer,
    pretexts,
)
from training.pretext import NoneConfiguration
from training.run_files import CHECKPOINT_FILE, LOG_FILE
from training.trainer import (
    Progress,
    TrainingError,
    TrainingSettingsError,
)

# --- a run ------------------------------------------------------------------------------------------------------------


@pretexts
def test_a_run_learns(tmp_path: Path, pretext: Any) -> None:
    trainer = make_trainer(tmp_path, steps=60, crop_patches=2, learning_rate=0.1, pretext=pretext)
    encoder = trainer.run()
    assert encoder is trainer.encoder
    assert not encoder.training
    losses = [loss for _, loss, _ in log_lines(tmp_path)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_the_log_and_the_reports_tell_the_same(tmp_path: Path) -> None:
    reports: list[Progress] = []
    make_trainer(tmp_path, log_steps=5).run(reports.append)
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [report._asdict() for report in reports] == lines
    assert [report.step for report in reports] == [5, 10, STEPS]
    assert {report.steps for report in reports} == {STEPS}
    assert all(report.images_per_second > 0 and 0 <= report.accuracy <= 1 for report in reports)
    assert reports[0].seconds_left > reports[-1].seconds_left == 0
    left = (STEPS - 5) * make_configuration().batch_size  # images
    assert reports[0].images_per_second * reports[0].seconds_left == pytest.approx(left)


def test_a_line_of_the_log_is_the_mean_since_the_last(tmp_path: Path) -> None:
    make_trainer(tmp_path / "each").run()
    make_trainer(tmp_path / "some", log_steps=5).run()
    each = np.array(log_lines(tmp_path / "each"))
    expected = [(end, *each[start:end, 1:].mean(axis=0)) for start, end in ((0, 5), (5, 10), (10, STEPS))]
    np.testing.assert_allclose(log_lines(tmp_path / "some"), expected, rtol=1e-12)


def test_the_learning_rate_is_one_cosine_cycle_down_to_nothing(tmp_path: Path) -> None:
    rates: list[float] = []
    trainer = make_trainer(tmp_path, learning_rate=0.2)
    trainer.run(lambda progress: rates.append(trainer._optimizer.param_groups[0]["lr"]))
    expected = [0.1 * (1 + np.cos(np.pi * step / STEPS)) for step in range(STEPS)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_crops_are_cut_out_of_the_images_anywhere(tmp_path: Path) -> None:
    """Every pixel tells its own image, row and column."""
    side, patch = GEOMETRY.image_size, GEOMETRY.patch_size
    rows, columns = np.mgrid[:side, :side]
    images = np.stack([np.stack([np.full((side, side), n), rows, columns], axis=2) for n in range(3)]).astype(np.uint8)
    trainer = make_trainer(tmp_path, images, batch_size=400)
    crops = trainer._crops()
    assert crops.shape == (400, 3, patch, patch)
    assert crops.dtype == torch.float32
    pixels = (crops * 255).round().long()
    torch.testing.assert_close(crops, pixels / 255)
    first = pixels[:, :, 0, 0]
    steps = torch.arange(patch)
    assert torch.equal(pixels[:, 0], first[:, 0, None, None].expand(-1, patch, patch))
    assert torch.equal(pixels[:, 1], (first[:, 1, None] + steps)[:, :, None].expand(-1, -1, patch))
    assert torch.equal(pixels[:, 2], (first[:, 2, None] + steps)[:, None, :].expand(-1, patch, -1))
    assert set(first[:, 0].tolist()) == {0, 1, 2}
    for axis in (1, 2):  # the first and the last place are taken too
        assert int(first[:, axis].min()) == 0
        assert int(first[:, axis].max()) == side - patch
    assert (first[:, 1] != first[:, 2]).any()


def test_crops_may_be_as_large_as_the_image(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, crop_patches=2)
    assert trainer._crops().shape[2:] == (GEOMETRY.image_size, GEOMETRY.image_size)
    with pytest.raises(
        TrainingSettingsError, match=r"crop_patches 3 makes crops of 96 pixels, larger than the 64.*at most 2"
    ):
        make_trainer(tmp_path, crop_patches=3)


@pretexts
def test_the_seed_decides_the_run(tmp_path: Path, pretext: Any) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        make_trainer(tmp_path / name, seed=seed, pretext=pretext).run()
    assert_same_run(tmp_path / "same", tmp_path / "one")
    assert log_lines(tmp_path / "other") != log_lines(tmp_path / "one")


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"batch_size": 1},
        {"crop_patches": 0},
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"weight_decay": float("inf")},
        {"seed": 2**63},
        {"momentum": 1},
        {"weight_decay": -1},
        {"precision": "float16"},
        {"seed": -1},
        {"checkpoint_seconds": 0},
        {"checkpoint_seconds": float("inf")},
        {"log_steps": 0},
        {"epochs": 1},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_configuration(**settings)


def test_without_a_pretext_task_no_step_runs_and_the_seed_decides_the_weights(tmp_path: Path) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        reports: list[Progress] = []
        # The crops of a task that there is none of need not fit into the images.
        trainer = make_trainer(tmp_path / str(seed), pretext=NoneConfiguration(), seed=seed, crop_patches=3)
        encoder = trainer.run(reports.append)
        assert reports == []
        assert trainer.step == 0
        assert not encoder.training
        assert not (tmp_path / str(seed) / CHECKPOINT_FILE).exists()
        return encoder.state_dict()

    one, again, other = weights(1), weights(1), weights(2)
    assert_same_state(one, again)
    assert not torch.equal(one["stem.0.weight"], other["stem.0.weight"])
    for name, value in one.items():  # batch norm is the identity
        if "running" in name:
            assert (value == ("var" in name)).all()


# --- broken -----------------------------------------------------------------------------------------------------------


def assert_finite(folder: Path) -> None:
    state = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
    for tensor in (*state["encoder"].values(), *state["task"].values()):
        assert tensor.isfinite().all()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_a_finite_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, learning_rate=0.03)

    def spoil(progress: Progress) -> None:
        if progress.step == 6:
            next(iter(trainer.task.head.parameters())).data.fill_(float("nan"))  # type: ignore[union-attr]

    with pytest.raises(TrainingError, match=r"became nan by step 6; lower the learning rate \(now 0.03\)"):
        trainer.run(spoil)
    assert checkpoint_step(tmp_path) == 5
    assert_finite(tmp_path)
    again = make_trainer(tmp_path, learning_rate=0.03)
    assert again.resume()
    again.run()


def test_a_nan_between_two_checkpoints_stops_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, log_steps=3, checkpoint_seconds=1000)

    def spoil(progress: Progress) -> None:
        next(iter(trainer.encoder.parameters())).data.fill_(float("inf"))

    with pytest.raises(TrainingError, match=r"the loss became nan by step 6; .* the last checkpoint is kept"):
        trainer.run(spoil)
    assert [step for step, _, _ in log_lines(tmp_path)] == [3]


@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_learning_rate_that_blows_up_never_reaches_a_checkpoint(tmp_path: Path, steps: int) -> None:
    trainer = make_trainer(tmp_path, steps=steps, learning_rate=1e38, precision="float32")
    with pytest.raises(TrainingError, match=r"lower the learning rate \(now 1e\+38\)"):
        trainer.run()
    if (tmp_path / CHECKPOINT_FILE).exists():
        assert_finite(tmp_path)


def test_an_interrupted_run_whose_loss_is_nan_saves_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, log_steps=1000)
    next(iter(trainer.task.head.parameters())).data.fill_(float("nan"))  # type: ignore[union-attr]
    step = trainer._train_step

    def stop() -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        return step()

    trainer._train_step = stop  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="the loss became nan by step 1"):
        trainer.run()
    assert not (tmp_path / CHECKPOINT_FILE).exists()
