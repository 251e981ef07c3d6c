"""Trials one after the other in this process, or spread over processes, one for each device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

import torch

from models.device import set_threads
from training.data import DataError
from training.reproduction.protocol import Trial
from training.reproduction.study import Cell, Event, Study, run_trial
from training.trainer import TrainingError, TrainingInterrupted

Show = Callable[[Event], None]

STOP_SECONDS = 120  # for a last step and its checkpoint


class Failure(NamedTuple):
    """A trial that did not end well, and why."""

    trial: Trial
    reason: str


def run_study(study: Study, devices: Sequence[torch.device], threads: int, show: Show) -> list[Failure]:
    """Do all that is missing.

    Args:
        study: opened by the caller.
        devices: a process works on each; on one alone, it is this process.
        threads: CPU threads of all processes together.
        show: told how it goes.

    Returns:
        The trials that failed; they do not stop the others.

    Raises:
        TrainingInterrupted: on SIGINT or SIGTERM, once every training has left its checkpoint.
    """
    missing = study.missing()
    try:
        if len(devices) == 1 or len(missing) < 2:
            set_threads(threads)
            return _work_here(study, missing, devices[0], show)
        return _Crew(study, max(1, threads // len(devices)), show).run(missing, devices)
    except (KeyboardInterrupt, TrainingInterrupted) as error:
        left = sum(map(len, study.missing().values()))
        raise TrainingInterrupted(
            f"stopped; {left} cells are left to do: run the same command again to go on where it stood"
        ) from error


def _work_here(study: Study, missing: dict[Trial, tuple[str, ...]], device: torch.device, show: Show) -> list[Failure]:
    failures = []
    for trial, classifiers in missing.items():
        reason = _attempt(study, trial, classifiers, device, study.add, show)
        if reason is not None:
            failures.append(Failure(trial, reason))
        show(Event(trial, "done" if reason is None else "failed", ended=True))
    return failures


def _attempt(
    study: Study,
    trial: Trial,
    classifiers: Sequence[str],
    device: torch.device,
    keep: Callable[[Cell], None],
    show: Show,
) -> str | None:
    """Why the trial failed, None where it did not."""
    try:
        run_trial(study, trial, classifiers, device, keep, show)
    except TrainingInterrupted:
        raise
    except Exception as error:  # whatever it is, hours of other trials do not depend on it
        if not isinstance(error, TrainingError | DataError | OSError):
            traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


@dataclass
class _Worker:
    """A process, the pipe to it, and what it works on."""

    process: SpawnProcess
    pipe: Connection[Any, Any]
    device: torch.device
    trial: Trial


class _Crew:
    """Worker processes, each with one trial at a time. Only this process knows the rest, and writes the cells.

    A pipe to each, not one queue for all: a process that is killed may hold a queue's lock.
    """

    def __init__(self, study: Study, threads: int, show: Show) -> None:
        self._study = study
        self._threads = threads
        self._show = show
        self._waiting: deque[tuple[Trial, tuple[str, ...]]] = deque()
        self._workers: list[_Worker] = []
        self._failures: list[Failure] = []

    def run(self, missing: dict[Trial, tuple[str, ...]], devices: Sequence[torch.device]) -> list[Failure]:
        self._waiting.extend(missing.items())
        try:
            for device in devices:
                self._hire(device)
            while self._workers:
                self._listen(None)
        finally:
            self._stop()
        return self._failures

    def _hire(self, device: torch.device) -> None:
        """Start a process on ``device`` for the next trial, if there is one."""
        if not self._waiting:
            return
        # Never forked: CUDA and the OpenMP of three libraries do not survive it.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self._study, device, self._threads, theirs))
        process.start()
        theirs.close()  # so that the pipe ends when the process does
        task = self._waiting.popleft()
        self._workers.append(_Worker(process, ours, device, task[0]))
        ours.send(task)

    def _listen(self, timeout: float | None) -> None:
        """Take what the workers have to say; wait for the first of it."""
        ready = wait([worker.pipe for worker in self._workers], timeout)
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):  # it ended, perhaps in the middle of a word
                self._workers.remove(worker)
                worker.process.join()
                if worker.process.exitcode:
                    reason = f"its process ended with status {worker.process.exitcode}"
                    self._failures.append(Failure(worker.trial, reason))
                    self._show(Event(worker.trial, "failed", ended=True))
                    self._hire(worker.device)
            else:
                self._take(worker, message)

    def _take(self, worker: _Worker, message: Cell | Event | Failure) -> None:
        match message:
            case Cell():
                self._study.add(message)
            case Failure():
                self._failures.append(message)
            case Event():
                self._show(message)
                if message.ended:
                    task = self._waiting.popleft() if self._waiting else None
                    worker.trial = task[0] if task else worker.trial
                    with suppress(BrokenPipeError):  # it has died since: the next thing heard of it is its end
                        worker.pipe.send(task)

    def _stop(self) -> None:
        """End workers that still work, each after its checkpoint, and keep what they have finished."""
        self._waiting.clear()
        for worker in self._workers:
            worker.process.terminate()  # SIGTERM: the trainer writes its checkpoint
        end = time.monotonic() + STOP_SECONDS
        try:
            while self._workers and time.monotonic() < end:
                self._listen(end - time.monotonic())
        finally:
            for worker in self._workers:
                worker.process.kill()


def _work(study: Study, device: torch.device, threads: int, pipe: Connection[Any, Any]) -> None:
    """The life of a worker process."""
    os.setsid()  # Ctrl-C reaches the first process alone, which then stops each worker once
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    set_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The pipe breaks where the first process is no more: then there is nobody to work for.
    with suppress(KeyboardInterrupt, TrainingInterrupted, EOFError, BrokenPipeError):
        while (task := pipe.recv()) is not None:
            trial, classifiers = task
            reason = _attempt(study, trial, classifiers, device, pipe.send, pipe.send)
            if reason is not None:
                pipe.send(Failure(trial, reason))
            pipe.send(Event(trial, "done" if reason is None else "failed", ended=True))
