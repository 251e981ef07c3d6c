"""The options that say what a detector is made of and how, and the configuration that they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cli.errors import UsageError
from cli.options import member, positive_integer
from cli.overrides import add_set, apply, parse_value

if TYPE_CHECKING:
    from training.fit import FitConfiguration

WIDTH = "encoder.width"
_MODES_OF = {"neighbours": ("neighbours",), "tolerance": ("auto", "sampled"), "centres": ("auto", "compressed")}


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Declare them: the model's, the training's, the calibration's, and ``--set`` for what has no option."""
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
        help="how many centres (default: 1024, auto up to 8192)",
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
        help="how many nearest embeddings a score looks at (default: nearest_neighbours 1, kernel_density 32)",
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
    model.add_argument(
        "--resize", choices=("squash", "letterbox"), help="how an image becomes square (default: squash)"
    )
    model.add_argument(
        "--sigma", type=float, help="of the heatmap's Gaussian, in pixels (default: a quarter of the patch)"
    )
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
        help="cutpaste: how much the lighting of good parts varies, 0 to 1 (default: 0.1)",
    )
    stage.add_argument("--steps", type=positive_integer, help="of the optimizer (cutpaste: 2500)")
    stage.add_argument("--batch-size", type=positive_integer, help="crops a step (cutpaste: 48)")
    stage.add_argument(
        "--crop-patches", type=positive_integer, help="side of a crop in patches (cutpaste: 2); the paper's is 1"
    )
    stage.add_argument("--learning-rate", type=float, help="at the beginning (cutpaste: 0.03)")
    stage.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        help="that stage 1 computes in; auto (default) is bfloat16 where the device computes in it",
    )
    stage.add_argument("--seed", type=int, help="of all that is drawn at random (default: 0)")
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
    calibration.add_argument(
        "--calibration-fraction", type=float, help="share of the good images held out (default: 0.25)"
    )
    calibration.add_argument("--group-pattern", help="regular expression; its first group names the part or lot")
    calibration.add_argument(
        "--false-reject-rate",
        type=float,
        help="share of good parts to reject (default: 0.01, or the smallest that the images held out can vouch for)",
    )
    add_set(parser)


def fit_configuration(options: argparse.Namespace) -> FitConfiguration:
    """What a training run makes, as far as options say; the rest is its default.

    Raises:
        UsageError: options that do not fit together, or that nothing uses.
        ValidationError: a value that a setting does not take.
    """
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
