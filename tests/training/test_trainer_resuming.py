"""Above all that a run, whatever stopped it, goes on as if nothing had."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models.encoders import DensePatch, DensePatchConfiguration
from models.geometry import ScanGeometry
from tests.signals import called_again
from tests.threads import torch_threads
from tests.training.trainer_support import (
    CPU,
    CUTPASTE,
    ENCODER,
    GEOMETRY,
    ROTATION,
    STEPS,
    StopAt,
    assert_same_run,
    checkpoint_step,
    log_lines,
    make_configuration,
    make_images,
    make_trainer,
    pretexts,
)
from training.run_files import CHECKPOINT_FILE, LOG_FILE
from training.trainer import (
    Progress,
    Trainer,
    TrainingError,
    TrainingInterrupted,
    TrainingSettingsError,
    _stop_signal,
)

ROOT = Path(__file__).resolve().parents[2]


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
        "(plumbline train --restart): training.pretext.jitter is 0.3 there and 0.123 now; "
        "training.steps is 12 there and 13 now"
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
from tests.training.trainer_support import make_trainer
import training.run_files

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


training.run_files.os = DyingOs()
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
