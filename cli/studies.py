"""What the verbs that carry out a study share: its options, its work, and its result."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import FAILED, INTERRUPTED, PartlyFailed, UsageError
from cli.options import add_common, positive_integer
from cli.progress import say, study_bar

if TYPE_CHECKING:
    import torch

    from training.reproduction.settings import Size
    from training.reproduction.study import Study

ALL = "all"
SIZES = ("smoke", "cpu", "paper")


def add_study(parser: argparse.ArgumentParser) -> None:
    """The options of a study, and those that all verbs share."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study; what is finished in it stays")
    parser.add_argument("--size", choices=SIZES, default="cpu", help="what it may cost (default: %(default)s)")
    parser.add_argument("--steps", type=positive_integer, help="of each training (default: the size's)")
    parser.add_argument("--learning-rate", type=float, help="at the beginning of each (default: the size's)")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of each training; auto is bfloat16 where the device computes in it (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=positive_integer, help="trainings of each (default: the size's)")
    parser.add_argument("--workers", type=positive_integer, help="processes (default: one for each GPU, or one)")
    parser.add_argument(
        "--keep-checkpoints", action="store_true", help="of measured trainings too, for classifiers to come"
    )
    add_common(parser)


def names(text: str) -> list[str]:
    """An argument that is a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def one(option: str, given: str, known: Collection[str]) -> str:
    """The one given.

    Raises:
        UsageError: if it is not known.
    """
    if given not in known:
        raise UsageError(f"{option} {f'{given} is not known' if given else 'is empty'}; accepted: {', '.join(known)}")
    return given


def chosen(
    option: str, given: Collection[str] | None, known: Collection[str], default: Collection[str] | None = None
) -> tuple[str, ...]:
    """Those given, in the order of ``known``; ``all`` names every one. Where none is given, ``default`` or else all.

    Raises:
        UsageError: if one is not known, the list is empty, or another stands beside ``all``.
    """
    if given is None:
        given = known if default is None else default
    if given == [ALL]:
        given = known
    if ALL in given:
        raise UsageError(f"{option} {','.join(given)}: {ALL} stands alone; leave it out, or the others")
    if not given:
        raise UsageError(f"{option} is empty; accepted: {ALL}, {', '.join(known)}")
    if unknown := [name for name in given if name not in known]:
        raise UsageError(f"{option} {', '.join(unknown)} is not known; accepted: {ALL}, {', '.join(known)}")
    return tuple(name for name in known if name in given)


def size_of(sizes: Mapping[str, Size], options: argparse.Namespace) -> Size:
    """The size that was asked for, with the schedule that was, in the precision that is meant on this machine."""
    from models.device import resolve_device
    from training.trainer import resolve_precision

    size = sizes[options.size]
    precision = resolve_precision(options.precision, resolve_device(options.device))
    return type(size).model_validate({**size.model_dump(), **_schedule(options), "precision": precision})


def title(study: Study, options: argparse.Namespace) -> str:
    """Of its table."""
    schedule = "".join(f", {name.replace('_', ' ')} {value:g}" for name, value in _schedule(options).items())
    return f"{study.protocol.name}, size {options.size}{schedule}"


def _schedule(options: argparse.Namespace) -> dict[str, float]:
    given = {"steps": options.steps, "learning_rate": options.learning_rate}
    return {name: value for name, value in given.items() if value is not None}


def carry_out(study: Study, options: argparse.Namespace, tabulate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure what is missing, and tabulate all that is there.

    Args:
        study: not yet opened.
        options: of ``add_study``.
        tabulate: writes and prints the table; what it returns, ``table`` among it, joins the result.

    Raises:
        PartlyFailed: where a training failed or all were interrupted; what is finished is in the table.
    """
    from models.encoders import create_encoder
    from training.reproduction.workers import run_study
    from training.trainer import TrainingInterrupted

    devices = _devices(options)
    protocol = study.protocol
    say(f"reading {options.data}")
    for trial in study.trials[: len(study.trials) // study.seeds]:  # one seed is as good as another
        protocol.check(trial)
    for encoder in (protocol.methods[name].encoder for name in study.methods):
        if encoder is not None:
            create_encoder(encoder, protocol.geometry).initialise()  # has its weights, or says what to get
    with study.opened():
        trials = study.missing()
        cells = sum(map(len, trials.values()))
        say(f"{cells} figures to measure on {len(trials)} trainings, with {len(devices)} at a time")
        failures, stopped = [], None
        with study_bar(len(trials)) as bar:
            try:
                failures = run_study(study, devices, options.threads, bar)
            except TrainingInterrupted as error:  # what is finished is in the table all the same
                stopped = str(error)
        result = {
            "folder": str(study.folder),
            **tabulate(),
            "failed": [{"trial": failure.trial.label, "error": failure.reason} for failure in failures],
        }
        left = sum(map(len, study.missing().values()))
    if result["table"]:
        print(f"written to {study.folder}")
    if stopped is not None:
        raise PartlyFailed(stopped, result, INTERRUPTED)
    if left:
        reasons = "; ".join(f"{failure.trial.label}: {failure.reason}" for failure in failures)
        raise PartlyFailed(f"{left} figures could not be measured: {reasons or 'workers died'}", result, FAILED)
    return result


def _devices(options: argparse.Namespace) -> list[torch.device]:
    """One for each process."""
    import torch

    from models.device import resolve_device

    device = resolve_device(options.device)
    if device.type == "cpu":
        return [device] * (options.workers or 1)
    count = torch.cuda.device_count()
    return [torch.device("cuda", number % count) for number in range(options.workers or count)]
