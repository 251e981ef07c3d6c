"""Learn a category from images of good parts and publish the detector as its next version."""

from __future__ import annotations

import argparse
import shutil
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.configuration import add_configuration, fit_configuration
from cli.errors import FAILED, INTERRUPTED, WRONG_INPUT, PartlyFailed, UsageError, exit_status, sentence
from cli.folders import check_folder
from cli.options import add_common, add_data, add_models
from cli.progress import say, training_bar

if TYPE_CHECKING:
    import torch

    from training.data import Dataset
    from training.fit import FitConfiguration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("category", nargs="?", metavar="CATEGORY", help="which category of --data; or use --all")
    parser.add_argument("--all", action="store_true", help="every category found under --data")
    add_data(parser)
    add_models(parser)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of checkpoints and logs (default: %(default)s)"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run, exactly where it stood; with --all, pass over what is published by these "
        "settings from these images",
    )
    again.add_argument("--restart", action="store_true", help="throw an interrupted run away and begin anew")
    parser.add_argument("--no-activate", action="store_true", help="publish without making the version the active one")
    add_configuration(parser)
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train one category, or all of them one after the other.

    Raises:
        PartlyFailed: after all others, where one of all failed, or at once where all were interrupted.
    """
    from models.device import resolve_device, set_threads
    from training.data import find_categories

    if (options.category is None) != options.all:
        raise UsageError("name one CATEGORY, or give --all for every one under --data")
    set_threads(options.threads)
    configuration = fit_configuration(options)
    device = resolve_device(options.device)
    if options.all:
        return _train_all(find_categories(options.data), configuration, device, options)
    return {"trained": [_train(options.category, configuration, device, options)], "failed": []}


def _train_all(
    categories: list[str], configuration: FitConfiguration, device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    trained: list[dict[str, Any]] = []
    passed_over: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    result = {"trained": trained, "passed_over": passed_over, "failed": failed}
    statuses: list[int] = []
    for category in categories:
        try:
            if options.resume and (version := _published(category, configuration, device, options)):
                say(f"{category}: passed over: version {version} is by these settings from these images")
                passed_over.append({"category": category, "version": version})
            else:
                trained.append(_train(category, configuration, device, options))
        except (Exception, KeyboardInterrupt) as error:  # whatever it is, hours of the other categories are not lost
            status = exit_status(error)
            if status == INTERRUPTED:
                raise PartlyFailed(sentence(error), result, INTERRUPTED) from error
            if status is None:
                traceback.print_exception(error)
            reason = f"{type(error).__name__}: {error}" if status is None else sentence(error)
            say(f"{category}: failed: {reason}")
            failed.append({"category": category, "error": reason})
            statuses.append(FAILED if status is None else status)
    if failed:
        names = ", ".join(entry["category"] for entry in failed)
        status = FAILED if FAILED in statuses else WRONG_INPUT
        raise PartlyFailed(f"{len(failed)} of {len(categories)} categories failed: {names}", result, status)
    return result


def _published(
    category: str, configuration: FitConfiguration, device: torch.device, options: argparse.Namespace
) -> int | None:
    """The version that the same settings have made of the same images, unless a run of the category lies there."""
    from models.artifact import read_manifest
    from models.configuration import configuration_of
    from models.store import ModelStore
    from models.store_errors import StoreNotFound, UnknownCategory
    from training.data import open_dataset
    from training.run_files import CHECKPOINT_FILE

    store = ModelStore(options.models)
    if any((options.runs / category).rglob(CHECKPOINT_FILE)):
        return None
    try:
        versions = store.versions(category)
    except (StoreNotFound, UnknownCategory):
        return None
    fingerprint = open_dataset(options.data, category, skip_broken=options.skip_broken).fingerprint()
    plan = configuration.detector.inference.resolved(device)
    detector = configuration.detector.model_copy(update={"inference": plan})
    fit = configuration.model_dump(mode="json", exclude={"detector"})
    for version in reversed(versions):
        manifest = read_manifest(store.folder(category, version))
        training = manifest.configuration.get("training")
        if (
            manifest.data_fingerprint == fingerprint
            and isinstance(training, dict)
            and training.get("fit") == fit
            and configuration_of(manifest) == detector
        ):
            return version
    return None


def _train(
    category: str, configuration: FitConfiguration, device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    from models.store import check_category_name
    from training.claim import held
    from training.data import open_dataset

    check_category_name(category)
    dataset = open_dataset(options.data, category, skip_broken=options.skip_broken)
    folder: Path = options.runs / category
    check_folder("--runs", folder)
    check_folder("--models", options.models / category)
    busy = UsageError(f"another process trains {category} in {options.runs}; wait for it, or name other --runs")
    # Beside the folder, which --restart removes; until it is published, or two would take turns in one checkpoint.
    with held(options.runs / f".{category}.lock", busy):
        return _fit_and_publish(dataset, configuration, device, folder, options)


def _fit_and_publish(
    dataset: Dataset, configuration: FitConfiguration, device: torch.device, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    from models.detector import member_folder
    from models.operation import Operations
    from models.store import ModelStore
    from training.fit import fit
    from training.run_files import CHECKPOINT_FILE

    category = dataset.category
    ours = {member_folder(folder, number) / CHECKPOINT_FILE for number in range(len(configuration.members))}
    found = set(folder.rglob(CHECKPOINT_FILE))
    if found and not options.resume:
        if not options.restart:
            raise UsageError(f"{folder} holds an interrupted run: go on with it (--resume) or discard it (--restart)")
        shutil.rmtree(folder)
    elif found - ours:
        raise UsageError(
            f"{folder} holds an interrupted ensemble of more members; name them all again (--ensemble, --member), or "
            "discard it (--restart)"
        )
    started = time.monotonic()
    with training_bar() as bar:
        detector, skipped = fit(
            dataset,
            configuration,
            device=device,
            folder=folder,
            skip_broken=options.skip_broken,
            stage=lambda text: say(f"{category}: {text}"),
            report=bar,
            count=bar.count,
        )
    for path, reason in skipped:
        say(f"skipped {path}: {reason}")
    version = Operations(ModelStore(options.models)).publish(detector, activate=not options.no_activate)
    for checkpoint in ours:
        checkpoint.unlink(missing_ok=True)  # where no step was run there is none
    point = detector.operating_point
    low, high = detector.calibration.rate_interval(point.false_reject_rate)
    say(
        f"{category}: version {version} published{'' if options.no_activate else ' and active'} after "
        f"{time.monotonic() - started:.0f} s; image threshold "
        f"{point.image_threshold:.4f} for a false-reject rate of {point.false_reject_rate:.2%} "
        f"(true rate, 90 % interval: {low:.2%} to {high:.2%}, from {len(detector.calibration)} images)"
    )
    return {
        "category": category,
        "version": version,
        "skipped": len(skipped),
        "seconds": time.monotonic() - started,
        **point.model_dump(mode="json"),
        "false_reject_rate_interval": [low, high],
    }
