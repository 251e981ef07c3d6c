"""Several processes: the same figures, and an end that loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tests.training.reproduction.support import Deadly, make_study, small
from training.reproduction.study import Event
from training.reproduction.workers import run_study

CPU = torch.device("cpu")


def test_two_processes_measure_what_one_does(fashion: Path, tmp_path: Path) -> None:
    classes = ("0", "1", "2")
    alone, spread = (make_study(fashion, tmp_path / name, classes=classes) for name in ("alone", "spread"))
    ended: list[str] = []

    def show(event: Event) -> None:
        if event.ended:
            ended.append(event.trial.subject)

    for study, devices in ((alone, [CPU]), (spread, [CPU, CPU])):
        with study.opened():
            assert run_study(study, devices, 1, show) == []
    assert ended[:3] == ["0", "1", "2"]
    assert sorted(ended[3:]) == ["0", "1", "2"]
    first, second = ({cell.trial: cell.figures for cell in study.cells()} for study in (alone, spread))
    assert first == second
    assert spread.missing() == {}


def test_a_training_that_fails_does_not_stop_the_others(fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path, learning_rate=1e30)
    with study.opened():
        failures = run_study(study, [CPU], 1, lambda event: None)
    assert sorted(failure.trial.subject for failure in failures) == ["0", "1"]
    assert all("lower the learning rate" in failure.reason for failure in failures)


def test_a_process_that_dies_is_told_of_and_the_rest_is_done(fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path, classes=("0", "1", "2"))
    study = replace(study, protocol=Deadly(fashion, small(), ("0", "1", "2"), "fashion-mnist"))
    with study.opened():
        failures = run_study(study, [CPU, CPU], 1, lambda event: None)
    assert [(failure.trial.subject, failure.reason) for failure in failures] == [
        ("1", "its process ended with status 9")
    ]
    assert sorted(cell.trial.subject for cell in study.cells()) == ["0", "2"]
