"""Learn a category from images of good parts and publish the detector as its next version."""

from __future__ import annotations

import argparse
import shutil
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import FAILED, INTERRUPTED, WRONG_INPUT, PartlyFailed, UsageError, exit_status, sentence
from cli.folders import check_folder
from cli.options import add_common, add_data, add_models, member, positive_integer
from cli.overrides import add_set, apply, parse_value
from cli.progress import say, training_bar

if TYPE_CHECKING:
    import torch

    from training.data import Dataset
    from training.fit import FitConfiguration


WIDTH = "encoder.width"


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
    model = parser.add_argument_group("model")
    model.add_argument("--encoder", metavar="NAME", help="network that embeds windows (default: dense_patch)")
    model.add_argument("--image-size", type=positive_integer, help="side of the square that is scanned (default: 256)")
    model.add_argument(
        "--patch-size", type=positive_integer, help="side of a window (default: 32); the image's makes it one window"
    )
    model.add_argument("--stride", type=positive_integer, help="pixels between windows (default: 4)")
    model.add_argument(
        "--stem",
        dest="encoder.stem",
        choices=("cifar", "imagenet"),
        help="resnet18_patch's first layers (default: cifar)",
    )
    model.add_argument(
        "--backbone",
        dest="encoder.backbone",
        choices=("mobilenet_v2", "resnet18", "wide_resnet50_2"),
        help="pretrained_patch's network, with ImageNet's weights (default: mobilenet_v2)",
    )
    width = model.add_mutually_exclusive_group()
    width.add_argument("--size", choices=("small", "base", "large"), help="dense_patch's width by name (default: base)")
    width.add_argument(
        "--width",
        dest=WIDTH,
        type=positive_integer,
        metavar="N",
        help="channels of dense_patch's first stage (default: 32)",
    )
    model.add_argument(
        "--density", metavar="NAME", help="one-class classifier (default: kernel_density); the README lists them"
    )
    model.add_argument(
        "--density-mode",
        dest="density.mode",
        choices=("auto", "exact", "compressed", "sampled", "neighbours"),
        help="kernel_density: sum over the bank, centres that stand for it, samples of it or the nearest of it; auto "
        "(default): over the fewest centres whose error is within --tolerance, else the bank",
    )
    model.add_argument(
        "--centres",
        dest="density.centres",
        type=positive_integer,
        metavar="N",
        help="how many (default: 1024, auto up to 8192)",
    )
    model.add_argument(
        "--tolerance",
        dest="density.tolerance",
        type=float,
        metavar="ERROR",
        help="error allowed, in units of the score (default: auto 0.02, sampled 0.005)",
    )
    model.add_argument(
        "--reduce",
        dest="density.reduction",
        type=_reduction,
        metavar="METHOD:DIMENSION",
        help="pca:96 (default for auto and compressed), random_projection:256 or none: dimensions before the sum",
    )
    model.add_argument(
        "--neighbours",
        dest="density.neighbours",
        type=positive_integer,
        metavar="N",
        help="how many nearest embeddings a score looks at",
    )
    model.add_argument(
        "--kernel", dest="density.kernel", choices=("rbf", "linear"), help="of one_class_svm (default: rbf)"
    )
    model.add_argument(
        "--components",
        dest="density.components",
        type=positive_integer,
        metavar="N",
        help="Gaussians of gaussian_mixture (default: 4)",
    )
    model.add_argument(
        "--bank-size",
        type=positive_integer,
        help="embeddings the density is fitted on (default: all for kernel_density, else 4096)",
    )
    model.add_argument("--resize", choices=("squash", "letterbox"), help="how an image becomes square")
    model.add_argument("--sigma", type=float, help="of the heatmap's Gaussian, in pixels")
    stage = parser.add_argument_group("training")
    stage.add_argument(
        "--pretext",
        metavar="NAME",
        help="self-supervised task (default: cutpaste; docs/pretext-tasks.md lists them); it decides the defaults of "
        "the options below",
    )
    stage.add_argument(
        "--light",
        dest="pretext.light",
        type=float,
        metavar="STRENGTH",
        help="cutpaste: how much the lighting of good parts varies, 0 to 1",
    )
    stage.add_argument("--steps", type=positive_integer)
    stage.add_argument("--batch-size", type=positive_integer, help="crops a step")
    stage.add_argument("--crop-patches", type=positive_integer, help="side of a crop in patches; the paper's is 1")
    stage.add_argument("--learning-rate", type=float)
    stage.add_argument("--precision", choices=("auto", "float32", "bfloat16"))
    stage.add_argument("--seed", type=int)
    stage.add_argument(
        "--ensemble",
        type=positive_integer,
        metavar="N",
        help="train N members, of the seeds from --seed on; their scores are averaged",
    )
    stage.add_argument(
        "--member",
        nargs="+",
        action="append",
        metavar="SETTING=VALUE",
        help="a further member (or N) whose pretext task differs in these settings; may be repeated",
    )
    calibration = parser.add_argument_group("calibration")
    calibration.add_argument("--calibration-fraction", type=float, help="share of the good images held out")
    calibration.add_argument("--group-pattern", help="regular expression; its first group names the part or lot")
    calibration.add_argument("--false-reject-rate", type=float, help="share of good parts to reject (default: 0.01)")
    add_set(parser)
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train one category, or all of them one after the other.

    Raises:
        PartlyFailed: after all others, where one of all failed.
    """
    from models.device import resolve_device, set_threads
    from training.data import find_categories

    if (options.category is None) != options.all:
        raise UsageError("name one CATEGORY, or give --all for every one under --data")
    set_threads(options.threads)
    configuration = _configuration(options)
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
    statuses: list[int] = []
    for category in categories:
        try:
            if options.resume and (version := _published(category, configuration, device, options)):
                say(f"{category}: passed over: version {version} is by these settings from these images")
                passed_over.append({"category": category, "version": version})
            else:
                trained.append(_train(category, configuration, device, options))
        except Exception as error:  # whatever it is, hours of the other categories' training do not depend on it
            status = exit_status(error)
            if status == INTERRUPTED:
                raise
            if status is None:
                traceback.print_exception(error)
            reason = f"{type(error).__name__}: {error}" if status is None else sentence(error)
            say(f"{category}: failed: {reason}")
            failed.append({"category": category, "error": reason})
            statuses.append(FAILED if status is None else status)
    result = {"trained": trained, "passed_over": passed_over, "failed": failed}
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
    from models.detector import configuration_of
    from models.store import ModelStore, StoreNotFound, UnknownCategory
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


def _configuration(options: argparse.Namespace) -> FitConfiguration:
    from models.densities import DENSITIES
    from models.encoders import ENCODERS, WIDTHS
    from training.fit import FitConfiguration
    from training.pretext import PRETEXTS

    default = FitConfiguration()
    if options.size:
        if (options.encoder or default.detector.encoder.name) != "dense_patch":
            raise UsageError(f"--size has no use: it names widths of dense_patch, not of {options.encoder}")
        setattr(options, WIDTH, WIDTHS[options.size])
    encoder = member("encoder", default.detector.encoder.name, ENCODERS, options)
    density = member("density", default.detector.density.name, DENSITIES, options)
    if density.get("reduction") == {}:
        density["reduction"] = None
    pretext = member("pretext", default.training.pretext.name, PRETEXTS, options)
    schedule = _given(options, "steps", "batch_size", "crop_patches", "learning_rate", "precision")
    if schedule and pretext["name"] == "none" and not options.member:
        flag = next(iter(schedule)).replace("_", "-")
        raise UsageError(f"--{flag} has no use: the pretext task none trains nothing")
    if options.bank_size and density["name"] == "rotation_classifier":
        raise UsageError("--bank-size has no use: the density rotation_classifier keeps no embeddings")
    values: dict[str, Any] = {
        "detector": {
            "geometry": _given(options, "image_size", "patch_size", "stride"),
            "encoder": encoder,
            "density": density,
            **_given(options, "resize", "sigma"),
        },
        "training": {"pretext": pretext, **schedule, **_given(options, "seed")},
        **_given(options, "bank_size", "calibration_fraction", "group_pattern", "false_reject_rate", "ensemble"),
        **({"pretexts": options.member} if options.member else {}),
    }
    apply(options.assignments, values, FitConfiguration)
    if options.member:  # now that the pretext task has all of its settings
        values["pretexts"] = [_changed(pretext, settings) for settings in options.member]
    configuration = FitConfiguration.model_validate(values)
    _check_used(options, configuration)
    return configuration


_MODES_OF = {"neighbours": ("neighbours",), "tolerance": ("auto", "sampled"), "centres": ("auto", "compressed")}


def _check_used(options: argparse.Namespace, configuration: FitConfiguration) -> None:
    """Refuse options that the mode of a kernel density leaves unused."""
    mode = getattr(configuration.detector.density, "mode", None)
    for name, modes in _MODES_OF.items():
        if mode is not None and getattr(options, f"density.{name}") is not None and mode not in modes:
            wanted = " or ".join(modes)
            raise UsageError(f"--{name} has no use in the {mode} mode: add --density-mode {wanted}")


def _reduction(text: str) -> dict[str, Any]:
    """``METHOD:DIMENSION``; of ``none`` an empty dictionary, since None is what an option is that was not given."""
    if text == "none":
        return {}
    method, _, dimension = text.partition(":")
    if method not in ("pca", "random_projection") or not dimension.isdecimal() or int(dimension) < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not none, pca:DIMENSION or random_projection:DIMENSION (2 or more)"
        )
    return {"method": method, "dimension": int(dimension)}


def _changed(pretext: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """A pretext task's settings with others in their place: ``SETTING=VALUE``, the value in JSON or plain text."""
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--member {setting!r} is no SETTING=VALUE, such as head_depth=2")
        changes[name] = parse_value(text)
    return changes if changes.get("name", pretext["name"]) != pretext["name"] else {**pretext, **changes}


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


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
