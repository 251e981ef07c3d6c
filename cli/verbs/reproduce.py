"""Measure the paper's tables again: any representation and classifier, the paper's figure beside each of ours."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import FAILED, PartlyFailed, UsageError
from cli.options import add_common, positive_integer
from cli.progress import say, study_bar

if TYPE_CHECKING:
    import torch

    from training.reproduction.protocol import Protocol

SIZES = ("smoke", "cpu", "paper")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tables."""
    tables = parser.add_subparsers(metavar="TABLE", required=True)
    for name, action, help_line in (
        ("semantic", _semantic, "Tables 2, 5 and 7 to 11: one class of a data set against the others, whole images"),
        ("mvtec", _mvtec, "Table 12: defects on MVTec AD, detection and localization"),
    ):
        sub = tables.add_parser(name, help=help_line, description=help_line)
        if action is _semantic:
            sub.add_argument("--dataset", required=True, help="fashion-mnist, cifar10, cifar20, cats-vs-dogs or celeba")
            sub.add_argument("--classes", type=_names, help="which are normal in turn, by name (default: all)")
        else:
            sub.add_argument("--categories", type=_names, help="which (default: all that --data has)")
        sub.add_argument("--data", type=Path, required=True, help="folder of the data")
        sub.add_argument("--out", type=Path, required=True, help="folder of the study; what is finished in it stays")
        sub.add_argument("--size", choices=SIZES, default="cpu", help="what it may cost (default: %(default)s)")
        sub.add_argument("--seeds", type=positive_integer, help="trainings of each (default: the size's)")
        sub.add_argument("--methods", type=_names, help="representations (default: those of the paper)")
        sub.add_argument("--classifiers", type=_names, help="one-class classifiers (default: the paper's)")
        sub.add_argument("--workers", type=positive_integer, help="processes (default: one for each GPU, or one)")
        sub.add_argument(
            "--keep-checkpoints", action="store_true", help="of measured trainings too, for classifiers to come"
        )
        add_common(sub)
        sub.set_defaults(action=action)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing, and write the table of all that is there.

    Raises:
        PartlyFailed: where a training failed; the others are in the table.
    """
    result: dict[str, Any] = options.action(options)
    return result


def _semantic(options: argparse.Namespace) -> dict[str, Any]:
    from training.reproduction.datasets import DATASETS
    from training.reproduction.semantic import Semantic
    from training.reproduction.settings import SEMANTIC

    dataset: str = options.dataset
    if dataset not in DATASETS:
        raise UsageError(f"--dataset {dataset} is not known; accepted: {', '.join(DATASETS)}")
    classes = _chosen("--classes", options.classes, DATASETS[dataset].classes)
    return _reproduce(Semantic(options.data, SEMANTIC[options.size], classes, dataset), options)


def _mvtec(options: argparse.Namespace) -> dict[str, Any]:
    from training.data import DataError
    from training.mvtec import CATEGORIES, missing_categories
    from training.reproduction.defects import Defects
    from training.reproduction.settings import MVTEC

    missing = missing_categories(options.data)
    found = [category for category in CATEGORIES if category not in missing]
    if not found:
        raise DataError(
            f"{options.data} holds no category of MVTec AD, such as {CATEGORIES[0]}/train/good; plumbline data mvtec "
            "fetches them"
        )
    if missing:
        say(f"missing in {options.data}: {', '.join(missing)}")
    categories = _chosen("--categories", options.categories, found)
    return {**_reproduce(Defects(options.data, MVTEC[options.size], categories), options), "missing": missing}


def _reproduce(protocol: Protocol, options: argparse.Namespace) -> dict[str, Any]:
    from models.encoders import create_encoder
    from training.reproduction import report
    from training.reproduction.methods import CLASSIFIERS, METHODS
    from training.reproduction.study import Study
    from training.reproduction.workers import run_study

    devices = _devices(options)
    papers = [[name for name, entry in table.items() if entry.paper] for table in (METHODS, CLASSIFIERS)]
    study = Study(
        protocol,
        _chosen("--methods", options.methods, METHODS, papers[0]),
        _chosen("--classifiers", options.classifiers, CLASSIFIERS, papers[1]),
        options.seeds or protocol.size.seeds,
        options.out,
        options.keep_checkpoints,
    )
    if not any(map(study.wanted, study.trials)):
        raise UsageError("none of --classifiers can score any of --methods: the rotation classifier needs its head")
    say(f"reading {options.data}")
    for subject in protocol.subjects:
        protocol.check(subject)
    for encoder in (METHODS[name].encoder for name in study.methods):
        if encoder is not None:
            create_encoder(encoder, protocol.geometry).initialise()  # has its weights, or says what to get
    with study.opened():
        trials = study.missing()
        cells = sum(map(len, trials.values()))
        say(f"{cells} figures to measure on {len(trials)} trainings, with {len(devices)} at a time")
        with study_bar(len(trials)) as bar:
            failures = run_study(study, devices, options.threads, bar)
        lines = report.tabulate(protocol, study.cells())
        title = f"{protocol.name}, size {options.size}"
        if lines:
            report.write(study.folder, lines, title)
            print(report.markdown(lines))
            print(f"written to {study.folder}")
        left = sum(map(len, study.missing().values()))
    result = {
        "folder": str(study.folder),
        "table": [line.to_json() for line in lines],
        "failed": [{"trial": failure.trial.label, "error": failure.reason} for failure in failures],
    }
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


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _chosen(
    option: str, names: Collection[str] | None, known: Collection[str], default: Collection[str] | None = None
) -> tuple[str, ...]:
    """Those named, in the order of ``known``; ``all`` names every one. Without a name, ``default`` or else all."""
    if names is None:
        names = known if default is None else default
    if names == ["all"]:
        names = known
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(f"{option} {', '.join(unknown)} is not known; accepted: all, {', '.join(known)}")
    return tuple(name for name in known if name in names)
