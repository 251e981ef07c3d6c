"""Studies: what is finished is kept, what was stopped goes on, and nothing is mixed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.densities import KernelDensity
from models.encoders import create_encoder
from tests.training.reproduction.support import TEST, TRAIN, make_study
from training.metrics import auroc
from training.reproduction.methods import CLASSIFIERS, METHODS
from training.reproduction.protocol import Trial
from training.reproduction.semantic import Semantic
from training.reproduction.settings import SEMANTIC
from training.reproduction.study import CELLS, RUNS, STUDY, Cell, Event, Study, StudyError
from training.reproduction.workers import run_study
from training.run_files import CHECKPOINT_FILE
from training.trainer import TrainingInterrupted

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


def run(study: Study, devices: Sequence[torch.device] = (CPU,)) -> list[Event]:
    events: list[Event] = []
    with study.opened():
        assert run_study(study, devices, 1, events.append) == []
    return events


def figures(study: Study) -> dict[tuple[Trial, str], dict[str, float]]:
    return {(cell.trial, cell.classifier): dict(cell.figures) for cell in study.cells()}


@pytest.fixture(scope="module")
def finished(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(fashion, tmp_path_factory.mktemp("finished"))
    run(study)
    return study


def test_every_cell_is_measured_once(finished: Study) -> None:
    cells = finished.cells()
    assert {(cell.trial.subject, cell.trial.method, cell.classifier, cell.trial.seed) for cell in cells} == {
        ("0", "rotation", "kernel_density", 0), ("1", "rotation", "kernel_density", 0),
    }  # fmt: skip
    assert all((cell.train_images, cell.steps, cell.device) == (TRAIN, 12, "cpu") for cell in cells)
    assert all(0 <= cell.figures["auroc"] <= 100 for cell in cells)
    assert finished.missing() == {}
    assert not list(finished.folder.glob(f"{RUNS}/*/{CHECKPOINT_FILE}"))
    assert run(finished) == []  # nothing is done again


def test_the_figure_is_the_auroc_of_the_other_classes(fashion: Path, tmp_path: Path) -> None:
    """Measured again from the checkpoint's own encoder, by another way."""
    study = replace(make_study(fashion, tmp_path, classes=("3",)), keep_checkpoints=True)
    run(study)
    [cell] = study.cells()
    protocol = study.protocol
    assert isinstance(protocol, Semantic)
    encoder = create_encoder(protocol.size.encoder, protocol.geometry).eval()
    state = torch.load(study.run_folder(cell.trial) / CHECKPOINT_FILE, weights_only=True)
    encoder.load_state_dict(state["encoder"])

    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            singles = [encoder(torch.from_numpy(image / 255).float().permute(2, 0, 1)[None]) for image in images]
        return torch.cat(singles).flatten(1).numpy()

    split = protocol.source.load(fashion, 32)
    density = KernelDensity().fit(embed(split.train.images[split.train.labels == 3]))
    scores = density.score_samples(embed(split.test.images))
    assert cell.figures["auroc"] == pytest.approx(100 * auroc(split.test.labels != 3, -scores), abs=0.2)


def test_every_method_is_measured_with_every_classifier_that_fits_it(fashion: Path, tmp_path: Path) -> None:
    """Those that need weights from elsewhere aside."""
    study = make_study(fashion, tmp_path, classes=("0",), steps=2)
    methods = tuple(name for name, method in METHODS.items() if method.encoder is None)
    study = replace(study, methods=methods, classifiers=tuple(CLASSIFIERS))
    run(study)
    assert {(cell.trial.method, cell.classifier) for cell in study.cells()} == {
        (method, classifier)
        for method in methods
        for classifier in CLASSIFIERS
        if classifier != "rotation_classifier" or method in ("rotnet", "rotation")
    }
    assert {cell.trial.method for cell in study.cells() if cell.steps == 0} == {"none"}


def test_what_is_added_later_is_measured_alone(fashion: Path, tmp_path: Path) -> None:
    run(make_study(fashion, tmp_path))
    events = run(make_study(fashion, tmp_path, seeds=2, classes=("1", "2")))
    assert {event.trial for event in events} == {
        Trial("2", "rotation", 0), Trial("1", "rotation", 1), Trial("2", "rotation", 1),
    }  # fmt: skip
    assert len(make_study(fashion, tmp_path).cells()) == 5


def test_an_interrupted_training_goes_on_to_the_same_figure(finished: Study, fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path)
    steps: list[int] = []

    def interrupt(event: Event) -> None:
        if event.progress is not None:
            signal.raise_signal(signal.SIGINT)
            steps.append(event.progress.step)

    with study.opened(), pytest.raises(TrainingInterrupted, match="2 cells are left"):
        run_study(study, [CPU], 1, interrupt)
    assert len(steps) == 1
    assert study.cells() == []
    [checkpoint] = study.folder.glob(f"{RUNS}/*/{CHECKPOINT_FILE}")
    assert torch.load(checkpoint, weights_only=True)["step"] == steps[0] < 12
    run(study)
    assert figures(study) == figures(finished)


def test_a_killed_process_loses_no_finished_cell(finished: Study, fashion: Path, tmp_path: Path) -> None:
    program = f"""
import os, signal, torch
from pathlib import Path
from typing import Any
from tests.training.reproduction.support import make_study
from training.reproduction.workers import run_study
study = make_study(Path({str(fashion)!r}), Path({str(tmp_path)!r}))
def die(event):
    if event.trial.subject == "1" and event.progress is not None:
        os.kill(os.getpid(), signal.SIGKILL)
with study.opened():
    run_study(study, [torch.device("cpu")], 1, die)
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    study = make_study(fashion, tmp_path)
    assert [cell.trial.subject for cell in study.cells()] == ["0"]
    assert {event.trial.subject for event in run(study)} == {"1"}
    assert figures(study) == figures(finished)


def test_half_a_line_is_measured_again(fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path)
    run(study)
    before = figures(study)
    path = study.folder / CELLS
    path.write_bytes(path.read_bytes()[:-9])
    assert len(study.cells()) == 1
    run(study)
    assert figures(study) == before


def test_half_a_letter_loses_no_other_line(fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path)
    with study.opened():
        study.add(Cell(Trial("0", "rotation", 0), "kernel_density", {"auroc": 50.0}, 5, 6, 7.5, "cpu"))
    before = (study.folder / CELLS).read_bytes()
    (study.folder / CELLS).write_bytes(before + "1,né".encode()[:-1])
    assert len(study.cells()) == 1
    with study.opened():
        assert (study.folder / CELLS).read_bytes() == before


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, b"0,rotation,kernel_density,1,50.0,5,6,7.5,cpu"),  # the heading is gone
        (1, b"<!DOCTYPE html>"),
        (2, b"0,rotation,kernel_density,zero,50.0,5,6,7.5,cpu"),
        (2, b"0,rotation,kernel_density,0,,5,6,7.5,cpu"),
        (2, b"0,rotation,kernel_den"),
        (2, b"0,rotation,kernel_density,0,50.0,5,6,7.5,cpu,more"),
        (2, b"0,rotation,kernel_density,0,\xff\xfe,5,6,7.5,cpu"),
        (2, b"0,rotation,kernel_density,0,5\r0.0,5,6,7.5,cpu"),
        (2, b"\0\0\0\0"),
    ],
)
def test_a_damaged_line_of_cells_is_named(number: int, line: bytes, fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path)
    with study.opened():
        for seed in range(2):
            study.add(Cell(Trial("0", "rotation", seed), "kernel_density", {"auroc": 50.0}, 5, 6, 7.5, "cpu"))
    path = study.folder / CELLS
    lines = path.read_bytes().splitlines()
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(StudyError) as error, study.opened():
        pass
    assert f"{path} is damaged in line {number} (" in str(error.value)
    assert "remove or replace it" in str(error.value)
    assert path.read_bytes() == b"\n".join(lines) + b"\n"  # what is good in it can be saved


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"<!DOCTYPE html>", b"\xff\xfe"])
def test_a_damaged_description_of_the_study_is_named(content: bytes, fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path)
    with study.opened():
        pass
    (study.folder / STUDY).write_bytes(content)
    with pytest.raises(StudyError, match=f"{study.folder / STUDY} is damaged: remove it"), study.opened():
        pass


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"steps": 13}, "another --out: size.steps is 12 there and 13 now"),
        ({"precision": "bfloat16"}, "another --out: size.precision is float32 there and bfloat16 now"),
    ],
)
def test_another_size_is_refused(other: dict[str, Any], said: str, fashion: Path, tmp_path: Path) -> None:
    with make_study(fashion, tmp_path).opened():
        pass
    with pytest.raises(StudyError, match=said), make_study(fashion, tmp_path, **other).opened():
        pass


def test_a_file_and_names_of_another_version_are_refused(fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path / "study")
    study.folder.write_text("a file")
    with pytest.raises(StudyError, match="is a file"), study.opened():
        pass
    study.folder.unlink()
    with study.opened():
        pass
    with (study.folder / "cells.csv").open("a") as file:
        file.write("0,jigsaw,kernel_density,0,50.0,10,2,1.0,cpu\n")
    with pytest.raises(StudyError, match="jigsaw"), study.opened():
        pass


def test_two_processes_are_refused(fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path)
    with study.opened(), pytest.raises(StudyError, match="another process"), study.opened():
        pass


def test_an_epoch_is_a_pass_without_the_incomplete_batch(fashion: Path, tmp_path: Path) -> None:
    training = SEMANTIC["paper"].training(METHODS["rotation"], 6000, 3)
    assert (training.steps, training.batch_size) == (2048 * 93, 64)
    assert (training.learning_rate, training.momentum, training.weight_decay, training.seed) == (0.01, 0.9, 3e-4, 3)
    assert SEMANTIC["paper"].training(METHODS["rotation"], 10, 0).steps == 2048
    contrastive, augmented = (
        SEMANTIC["paper"].training(METHODS[name], 6000, 0) for name in ("contrastive", "distribution_augmented")
    )
    assert (contrastive.steps, contrastive.batch_size) == (2048 * 187, 32)
    assert augmented.steps == 2048 * 750  # four copies of every image are in an epoch
    tuned = SEMANTIC["paper"].training(METHODS["mean_shifted"], 6000, 0)
    assert (tuned.steps, tuned.learning_rate) == (500, 1e-5)


def test_fewer_test_images_are_the_same_ones_every_time(fashion: Path) -> None:
    protocol = make_study(fashion, Path(), test=20).protocol
    assert isinstance(protocol, Semantic)
    first, second = protocol.test_images(), protocol.test_images()
    assert len(first.labels) == 20 < 10 * TEST
    np.testing.assert_array_equal(first.images, second.images)
    assert (first.labels != protocol.split.test.labels[:20]).any()  # which may be all of one class


def test_cells_come_back_as_they_were_kept_on_the_disk(
    fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(fashion, tmp_path)
    cell = Cell(Trial("0", "rotation", 7), "kernel_density", {"auroc": 100 / 3}, 5, 6, 7.5, "cuda:1")
    with study.opened():
        synced: list[Path] = []
        monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink()))
        study.add(cell)
    assert synced == [study.folder / CELLS]
    assert study.cells() == [cell]
