"""The trainer: its schedule, and above all that a run, whatever stopped it, goes on as if nothing had."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from models.encoders import DensePatch, DensePatchConfiguration
from models.geometry import ScanGeometry
from tests.signals import called_again
from tests.threads import torch_threads
from training.pretext import CutPasteConfiguration, DenoisingConfiguration, NoneConfiguration, RotationConfiguration
from training.trainer import (
    CHECKPOINT_FILE,
    LOG_FILE,
    Progress,
    Trainer,
    TrainingConfiguration,
    TrainingError,
    TrainingInterrupted,
    TrainingSettingsError,
    _stop_signal,
)

ROOT = Path(__file__).resolve().parents[2]
GEOMETRY = ScanGeometry(image_size=2 * ScanGeometry().patch_size)
ENCODER = DensePatchConfiguration(width=2)
CPU = torch.device("cpu")
CUTPASTE = CutPasteConfiguration(
    head_depth=1,
    head_width=8,
    patch_side=(0.5, 1.0),
    scar_width=(0.05, 0.2),
    scar_length=(0.25, 1.0),
    light=0.1,
    jitter=0.3,
    hue=0.1,
    opacity=(1.0, 1.0),
    visible=0.15,
    changed=0.01,
)
ROTATION = RotationConfiguration(head_depth=1, head_width=8)
DENOISING = DenoisingConfiguration(head_width=32)
pretexts = pytest.mark.parametrize("pretext", [CUTPASTE, ROTATION, DENOISING], ids=lambda pretext: pretext.name)
STEPS = 12


def make_images(count: int = 5) -> NDArray[np.uint8]:
    """Dark above, bright below, with coloured noise: there is something to learn of either task."""
    random = np.random.default_rng(0)
    light = np.linspace(40, 200, GEOMETRY.image_size)[None, :, None, None]
    noise = random.normal(0, 20, (count, GEOMETRY.image_size, GEOMETRY.image_size, 3))
    images: NDArray[np.uint8] = np.clip(light + noise, 0, 255).astype(np.uint8)
    return images


def make_configuration(**settings: Any) -> TrainingConfiguration:
    small = {"steps": STEPS, "batch_size": 4, "crop_patches": 1, "log_steps": 1, "checkpoint_seconds": 1e-9}
    return TrainingConfiguration(**({"pretext": CUTPASTE} | small | settings))


def make_trainer(folder: Path, images: NDArray[np.uint8] | None = None, **settings: Any) -> Trainer:
    images = make_images() if images is None else images
    return Trainer(make_configuration(**settings), ENCODER, GEOMETRY, images, CPU, folder)


def log_lines(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and accuracy of every line; the times differ from run to run."""
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [(line["step"], line["loss"], line["accuracy"]) for line in lines]


def checkpoint_step(folder: Path) -> int:
    step: int = torch.load(folder / CHECKPOINT_FILE, weights_only=True)["step"]
    return step


def assert_same_state(one: Any, other: Any) -> None:
    """Two checkpoints' contents, bit for bit: weights, momentum, random numbers, step."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_state(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_same_run(folder: Path, uninterrupted: Path) -> None:
    assert log_lines(folder) == log_lines(uninterrupted)
    assert_same_state(
        torch.load(folder / CHECKPOINT_FILE, weights_only=True),
        torch.load(uninterrupted / CHECKPOINT_FILE, weights_only=True),
    )


class StopAt:
    """A report that sends this process a signal after a step."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def __call__(self, progress: Progress) -> None:
        if progress.step == self.step:
            signal.raise_signal(self.number)


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


# --- stopped and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pretexts
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, pretext: Any, precision: str) -> None:
    settings: dict[str, Any] = {"pretext": pretext, "precision": precision}
    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    make_trainer(whole, **settings).run()
    with pytest.raises(TrainingInterrupted, match=f"after step 7 of {STEPS}"):
        make_trainer(folder, **settings).run(StopAt(7))
    assert checkpoint_step(folder) == 7
    torch.manual_seed(12345)  # whatever another process did with its random numbers
    torch.rand(3)
    resumed = make_trainer(folder, **settings)
    assert resumed.resume() is True
    assert resumed.step == 7
    resumed.run()
    assert_same_run(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_may_be_interrupted_again_and_again(tmp_path: Path, number: signal.Signals) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    make_trainer(whole).run()
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    for step in (1, 2, 6, STEPS):
        trainer = make_trainer(folder)
        assert trainer.resume() is (step > 1)
        with pytest.raises(TrainingInterrupted):
            trainer.run(StopAt(step, number))
        assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    finished = make_trainer(folder)
    assert finished.resume()
    assert not finished.run().training
    assert_same_run(folder, whole)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal has it; a test run in the background is started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.timeout(60)
def test_a_signal_that_comes_while_another_is_taken_holds_nothing_up() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        again = 1
        while again:
            with _stop_signal() as stop:
                again = called_again(partial(signal.raise_signal, signal.SIGTERM), again)
                assert stop.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_a_second_signal_acts_as_it_did_before(tmp_path: Path) -> None:
    def impatient(progress: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path).run(impatient)


def test_the_log_of_a_resumed_run_has_the_means_of_the_whole(tmp_path: Path) -> None:
    """Stopped between two lines of the log; the next line still counts the steps before the stop."""
    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    settings: dict[str, Any] = {"log_steps": 5, "checkpoint_seconds": 1000}
    make_trainer(whole, **settings).run()
    trainer = make_trainer(folder, **settings)
    step = trainer._train_step

    def stop_in_step_7() -> torch.Tensor:
        if trainer.step == 6:
            signal.raise_signal(signal.SIGINT)
        return step()

    trainer._train_step = stop_in_step_7  # type: ignore[method-assign]
    with pytest.raises(TrainingInterrupted, match="after step 7"):
        trainer.run()
    assert [line[0] for line in log_lines(folder)] == [5]
    resumed = make_trainer(folder, **settings)
    assert resumed.resume()
    resumed.run()
    assert_same_run(folder, whole)


def test_nothing_to_resume(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "new")
    assert trainer.resume() is False
    assert not (tmp_path / "new").exists()
    trainer.run()
    assert checkpoint_step(tmp_path / "new") == STEPS


def test_what_differs_from_the_run_that_is_to_be_resumed_is_named(tmp_path: Path) -> None:
    make_trainer(tmp_path).save_checkpoint()
    pretext = CUTPASTE.model_copy(update={"jitter": 0.123})
    with pytest.raises(TrainingSettingsError) as error:
        make_trainer(tmp_path, steps=STEPS + 1, pretext=pretext).resume()
    assert str(error.value).endswith(
        "without resuming: training.pretext.jitter is 0.3 there and 0.123 now; training.steps is 12 there and 13 now"
    )


def test_the_precision_that_auto_means_belongs_to_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a checkpoint goes on on a machine that computes in another."""
    monkeypatch.setattr("training.trainer.computes_bfloat16", lambda device: True)
    make_trainer(tmp_path).save_checkpoint()
    monkeypatch.setattr("training.trainer.computes_bfloat16", lambda device: False)
    with pytest.raises(TrainingSettingsError, match="precision is bfloat16 there and float32 now"):
        make_trainer(tmp_path).resume()
    assert make_trainer(tmp_path, precision="bfloat16").resume()


@pytest.mark.parametrize(
    "other",
    [
        {"steps": STEPS + 1},
        {"batch_size": 5},
        {"crop_patches": 2},
        {"learning_rate": 0.5},
        {"momentum": 0.5},
        {"weight_decay": 0.5},
        {"precision": "bfloat16"},
        {"seed": 9},
        {"pretext": ROTATION},
        {"pretext": CUTPASTE.model_copy(update={"jitter": 0.123})},
        {"images": make_images()[:-1]},
        {"images": 255 - make_images()},
        {"images": make_images()[::-1]},
        {"images": make_images()[:, ::-1]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_run_is_not_resumed_with_other_settings_or_images(tmp_path: Path, other: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"precision": "float32"}
    make_trainer(tmp_path, steps=STEPS, **settings).save_checkpoint()
    if "images" in other:
        other = other | {"images": other["images"].copy()}
    trainer = make_trainer(tmp_path, **(settings | other))
    with pytest.raises(TrainingSettingsError, match="other settings or images"):
        trainer.resume()
    assert trainer.step == 0


def test_a_run_is_not_resumed_with_another_encoder_or_geometry(tmp_path: Path) -> None:
    make_trainer(tmp_path).save_checkpoint()
    arguments = (make_images(), CPU, tmp_path)
    wide = Trainer(make_configuration(), DensePatchConfiguration(width=3), GEOMETRY, *arguments)
    larger = Trainer(make_configuration(), ENCODER, ScanGeometry(), *arguments)
    for trainer in (wide, larger):
        with pytest.raises(TrainingSettingsError, match="other settings or images"):
            trainer.resume()


def test_a_run_is_not_resumed_by_a_build_whose_encoder_of_that_name_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(tmp_path).save_checkpoint()
    monkeypatch.setattr("training.trainer.create_encoder", lambda _, geometry: DensePatch(geometry, width=3))
    with pytest.raises(TrainingSettingsError, match="other settings or images"):
        make_trainer(tmp_path).resume()


def test_how_often_is_logged_and_saved_may_change(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        make_trainer(tmp_path).run(StopAt(5))
    resumed = make_trainer(tmp_path, log_steps=3, checkpoint_seconds=1000)
    assert resumed.resume()
    resumed.run()
    assert [line[0] for line in log_lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 9, 12]


def test_a_checkpoint_that_is_no_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.save_checkpoint()
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged"):
        make_trainer(tmp_path).resume()
    torch.save(trainer.encoder.state_dict(), path)  # another program's
    with pytest.raises(TrainingError, match="damaged"):
        make_trainer(tmp_path).resume()


# --- killed -----------------------------------------------------------------------------------------------------------

# Runs in a process of its own, and is killed in it: before the checkpoint of a step, or while it is written.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tests.training.test_trainer import make_trainer
import training.trainer

where, at, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
trainer = make_trainer(folder)
resumed = trainer.resume()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def report(progress):
    if where == "before" and progress.step == at:
        die()


class DyingOs:
    def __getattr__(self, name):
        return getattr(os, name)

    def fsync(self, descriptor):
        if where == "during" and trainer.step == at:
            os.ftruncate(descriptor, 1000)
            die()
        os.fsync(descriptor)


training.trainer.os = DyingOs()
trainer.run(report)
"""


def run_and_kill(where: str, at: int, folder: Path) -> None:
    command = [sys.executable, "-c", KILLED, where, str(at), str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with torch_threads(1):
        make_trainer(folder).run()
    return folder


def test_a_run_killed_by_sigkill_goes_on_bit_for_bit(tmp_path: Path, whole: Path) -> None:
    run_and_kill("before", 8, tmp_path)
    assert checkpoint_step(tmp_path) == 7
    assert [line[0] for line in log_lines(tmp_path)] == list(range(1, 9))  # a step further than the checkpoint
    with (tmp_path / LOG_FILE).open("a") as log:
        log.write('{"step": 9, "loss": 0.')  # and a line that was never finished
    resumed = make_trainer(tmp_path)
    assert resumed.resume()
    resumed.run()
    assert_same_run(tmp_path, whole)


def test_a_checkpoint_killed_while_it_is_written_is_never_seen(tmp_path: Path, whole: Path) -> None:
    run_and_kill("during", 1, tmp_path)  # the first: there is nothing to resume
    assert not (tmp_path / CHECKPOINT_FILE).exists()
    assert make_trainer(tmp_path).resume() is False
    run_and_kill("during", 8, tmp_path)  # with a torn file lying about from before
    [partial] = tmp_path.glob("*.partial")
    assert partial.stat().st_size == 1000
    assert checkpoint_step(tmp_path) == 7
    resumed = make_trainer(tmp_path)
    assert resumed.resume()
    resumed.run()
    assert_same_run(tmp_path, whole)
    assert list(tmp_path.glob("*.partial")) == []


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
