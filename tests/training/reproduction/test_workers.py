"""Several processes: the same figures, and an end that loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tests.training.reproduction.support import Deadly, make_study, small
from training.reproduction.study import Event
from training.reproduction.workers import _Crew, run_study

CPU = torch.device("cpu")


def test_two_processes_measure_what_one_does(fashion: Path, tmp_path: Path) -> None:
    classes = ("0", "1", "2")  # one more than there are processes
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


def test_a_process_that_dies_is_told_of_and_another_takes_its_place(fashion: Path, tmp_path: Path) -> None:
    study = make_study(fashion, tmp_path)
    study = replace(study, protocol=Deadly(fashion, small(), ("1", "0"), "fashion-mnist"))
    with study.opened():
        [failure] = _Crew(study, 1, lambda event: None).run(study.missing(), [CPU])
    assert (failure.trial.subject, failure.reason) == ("1", "its process ended with status 9")
    assert [cell.trial.subject for cell in study.cells()] == ["0"]
