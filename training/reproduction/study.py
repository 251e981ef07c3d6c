"""A study: each representation is trained once, every classifier fitted on it, every figure kept once it is there.

The folder of a study, all of it made here:

    study.json        what the figures belong to: protocol and size, the precision among it
    cells.csv         a line for each finished cell, that is subject, method, classifier and seed
    runs/<trial>/     checkpoint and log of each training
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from models.store_files import write_file
from training.claim import differences, held
from training.reproduction.protocol import Protocol, Trial
from training.run_files import CHECKPOINT_FILE
from training.trainer import Progress, Trainer, TrainingSettingsError

STUDY, CELLS, RUNS, LOCK = "study.json", "cells.csv", "runs", ".lock"
KEYS = ("subject", "method", "classifier", "seed")
FACTS = ("train_images", "steps", "seconds", "device")


class StudyError(TrainingSettingsError):
    """The folder cannot be used for this study; the message says what to do."""


class Cell(NamedTuple):
    """What one classifier reached on one trial: figures by the name of the metric, and how it was made.

    ``seconds`` is the time of this classifier alone, or with it the training's, for the first one after it.
    """

    trial: Trial
    classifier: str
    figures: Mapping[str, float]
    train_images: int
    steps: int
    seconds: float
    device: str


class Event(NamedTuple):
    """Something to show: a stage of a trial, how its training goes, or that it ended."""

    trial: Trial
    stage: str
    progress: Progress | None = None
    ended: bool = False


@dataclass(frozen=True)
class Study:
    """Which cells are wanted, and where they are kept.

    Attributes:
        protocol: what is trained on and measured.
        methods, classifiers: names of the protocol's; every pair that exists is a cell.
        seeds: trainings of each representation, numbered from 0.
        folder: of the study.
        keep_checkpoints: leave the last checkpoint of a training that is measured, for classifiers to come.
    """

    protocol: Protocol
    methods: tuple[str, ...]
    classifiers: tuple[str, ...]
    seeds: int
    folder: Path
    keep_checkpoints: bool = False

    @property
    def trials(self) -> list[Trial]:
        """All of them, seed after seed, so that an early end leaves every method with some seeds."""
        return [
            Trial(subject, method, seed)
            for seed in range(self.seeds)
            for subject in self.protocol.subjects
            for method in self.methods
        ]

    def wanted(self, trial: Trial) -> tuple[str, ...]:
        """The classifiers that ``trial`` is to be measured with: those that fit its method."""
        method, known = self.protocol.methods[trial.method], self.protocol.classifiers
        return tuple(name for name in self.classifiers if method.fits(known[name]))

    def cells(self) -> list[Cell]:
        """The finished ones, also those of other methods, subjects and seeds than are wanted now.

        Raises:
            StudyError: a line is no cell, or the first one does not name the columns.
        """
        path = self.folder / CELLS
        if not path.exists():
            return []
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a killed process may have left half a line
        if not whole:
            return []
        rows = csv.reader(io.StringIO(whole.decode(errors="replace")))
        cells = []
        try:
            if next(rows) != self._columns:
                raise ValueError(f"not {','.join(self._columns)}")
            for row in filter(None, rows):
                value = dict(zip(self._columns, row, strict=True))
                trial = Trial(value["subject"], value["method"], int(value["seed"]))
                figures = {metric: float(value[metric]) for metric in self.protocol.paper_datasets}
                facts = (int(value["train_images"]), int(value["steps"]), float(value["seconds"]), value["device"])
                cells.append(Cell(trial, value["classifier"], figures, *facts))
        except (ValueError, csv.Error) as error:
            raise StudyError(
                f"{path} is damaged in line {rows.line_num} ({error}): remove or replace it; without a line, its cell "
                "is measured again"
            ) from error
        return cells

    @property
    def _columns(self) -> list[str]:
        return [*KEYS, *self.protocol.paper_datasets, *FACTS]

    def missing(self) -> dict[Trial, tuple[str, ...]]:
        """The trials that are not finished, and the classifiers that each lacks."""
        done = {(cell.trial, cell.classifier) for cell in self.cells()}
        lacking = {
            trial: tuple(name for name in self.wanted(trial) if (trial, name) not in done) for trial in self.trials
        }
        return {trial: names for trial, names in lacking.items() if names}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder, made if missing, for this process and this study.

        Raises:
            StudyError: it is a file, it belongs to another study, is damaged, or another process works on it.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise StudyError(f"{self.folder} is a file; --out names a folder")
        busy = StudyError(f"another process works on {self.folder}; wait for it, or name another --out")
        with held(self.folder / LOCK, busy):
            self._claim()
            yield

    def _claim(self) -> None:
        identity = {"protocol": self.protocol.name, "size": self.protocol.size.model_dump(mode="json")}
        path = self.folder / STUDY
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(found, dict):
                    raise ValueError("no JSON object")
            except ValueError as error:  # or no JSON, or no text
                raise StudyError(
                    f"{path} is damaged: remove it if the figures beside it are of {json.dumps(identity)}, or replace "
                    f"it ({error})"
                ) from error
            if found != identity:
                raise StudyError(
                    f"{self.folder} holds figures of another protocol, data set, size or precision; ask for the same, "
                    f"or name another --out: {differences(found, identity)}"
                )
        else:
            write_file(path, json.dumps(identity, indent=2) + "\n")
        cells = self.folder / CELLS
        if cells.exists():
            with cells.open("r+b") as file:  # half a line would spoil the next one
                file.truncate(cells.read_bytes().rfind(b"\n") + 1)
        if not cells.exists() or not cells.stat().st_size:
            self._append(self._columns)
        named = {name for cell in self.cells() for name in (cell.trial.method, cell.classifier)}
        if unknown := named - {*self.protocol.methods, *self.protocol.classifiers}:
            raise StudyError(f"{cells} names {', '.join(sorted(unknown))}, unknown to this version; name another --out")

    def add(self, cell: Cell) -> None:
        """Keep a finished cell, for good once this returns."""
        trial = cell.trial
        figures = [repr(cell.figures[metric]) for metric in self.protocol.paper_datasets]
        facts = [cell.train_images, cell.steps, f"{cell.seconds:.1f}", cell.device]
        self._append([trial.subject, trial.method, cell.classifier, trial.seed, *figures, *facts])

    def _append(self, values: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        with (self.folder / CELLS).open("ab", buffering=0) as file:
            file.write(line.getvalue().encode())
            os.fsync(file.fileno())

    def run_folder(self, trial: Trial) -> Path:
        """Where a training keeps its checkpoint and its log."""
        return self.folder / RUNS / trial.label.replace(" ", "-")


def run_trial(
    study: Study,
    trial: Trial,
    classifiers: Sequence[str],
    device: torch.device,
    keep: Callable[[Cell], None],
    show: Callable[[Event], None],
) -> None:
    """Train a representation, or go on with it, and measure it with each classifier.

    Args:
        study: what it belongs to.
        trial: which one.
        classifiers: names of the protocol's.
        device: where to compute.
        keep: given each cell as soon as it is finished.
        show: told how it goes.

    Raises:
        TrainingInterrupted: on SIGINT or SIGTERM while it trains, after a checkpoint.
    """
    started = time.monotonic()
    show(Event(trial, "reading images"))
    protocol = study.protocol
    images = protocol.train_images(trial)
    configuration = protocol.size.training(protocol.methods[trial.method], len(images), trial.seed)
    folder = study.run_folder(trial)
    trainer = Trainer(configuration, protocol.encoder(trial), protocol.geometry, images, device, folder)
    trainer.resume()
    trainer.run(lambda progress: show(Event(trial, "training", progress)))
    show(Event(trial, "measuring"))
    chosen = {name: protocol.classifiers[name] for name in classifiers}
    for measured in protocol.measure(trial, trainer, chosen, device):
        now = time.monotonic()
        facts = (len(images), configuration.steps_to_run, now - started, str(device))
        keep(Cell(trial, measured.classifier, measured.figures, *facts))
        started = now
    if not study.keep_checkpoints:
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)  # there is none where nothing was trained
