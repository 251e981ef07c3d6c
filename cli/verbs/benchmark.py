"""Measure speed on this machine; every figure is a ratio within one run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.errors import UsageError
from cli.options import add_common, member, positive_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmarks."""
    parser.add_argument(
        "name",
        choices=("scan", "kde", "predict", "growth", "http"),
        help="scan: ResNet18Patch against DensePatch on one image. kde: every way to a kernel density, by the bank's "
        "size. predict: every stage of an inspection, beside the matrix product of as many multiply-adds. growth: time "
        "along bank, batch and area, as a plot. http: a running service against a loop in one process: throughput, "
        "latency, overload",
    )
    parser.add_argument(
        "--repeats",
        type=positive_integer,
        help="scan, kde, predict, growth: timed runs of each (default: 7, predict 15)",
    )
    parser.add_argument("--encoder", help="predict: of the detector that is trained for it (default: dense_patch)")
    parser.add_argument(
        "--batches", type=positive_integer, nargs="+", help="predict, growth: images a call (default: 1 32; 1 to 32)"
    )
    growth = parser.add_argument_group("growth")
    growth.add_argument("--out", type=Path, default=Path("growth"), help="folder (default: %(default)s)")
    growth.add_argument("--bank-sizes", type=positive_integer, nargs="+", help="embeddings (default: by the device)")
    growth.add_argument(
        "--sides", type=positive_integer, nargs="+", help="of the input, in pixels (default: 128 to 768)"
    )
    kde = parser.add_argument_group("kde")
    kde.add_argument(
        "--sizes", type=positive_integer, nargs="+", help="embeddings in the bank (default: 10000 100000 1000000)"
    )
    kde.add_argument(
        "--study",
        type=Path,
        help="a category's folder of embeddings that benchmarks.compression has made: measure instead how often the "
        "error bars of the sampled mode hold; of --sizes, the first is the bank's",
    )
    kde.add_argument(
        "--furthest", action="store_true", help="with --study: of the windows of test images that deviate most"
    )
    kde.add_argument("--draws", type=positive_integer, default=20, help="independent samples (default: %(default)s)")
    kde.add_argument("--samples", type=positive_integer, help="embeddings in the smallest sample (default: 32768)")
    detector = parser.add_argument_group("detector, for predict and http")
    detector.add_argument(
        "--folder",
        type=Path,
        default=Path("benchmark-detector"),
        help="for the detector that is trained for it, or was by an earlier run (default: %(default)s)",
    )
    detector.add_argument("--steps", type=positive_integer, default=100, help="of that training (default: %(default)s)")
    detector.add_argument("--models", type=Path, help="a store of one's own instead, with --category and --images")
    detector.add_argument("--category", help="which of them")
    detector.add_argument("--images", type=Path, help="folder of image files")
    http = parser.add_argument_group("http")
    http.add_argument("--seconds", type=positive_integer, default=20, help="of each phase (default: %(default)s)")
    http.add_argument("--url", help="a service that runs already with these models (default: one is started)")
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and print its figures."""
    from models.device import set_threads

    set_threads(options.threads)
    result = {"scan": _scan, "kde": _kde, "predict": _predict, "growth": _growth, "http": _http}[options.name](options)
    _show(result)
    return result


def _show(result: Mapping[str, Any], indent: str = "") -> None:
    """A line a figure; what holds further figures is a heading."""
    for name, value in result.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            print(f"{indent}{name}")
            _show(value, f"{indent}  ")
        elif isinstance(value, Mapping):
            print(f"{indent}{name:28} {', '.join(f'{inner} {value[inner]}' for inner in value)}")
        else:
            print(f"{indent}{name:28} {value}")


def _scan(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.scan import measure
    from models.device import resolve_device

    return measure(resolve_device(options.device), repeats=options.repeats or 7)


def _kde(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.kde import SIZES, coverage, measure
    from models.device import resolve_device

    device = resolve_device(options.device)
    if options.study is None:
        if options.furthest:
            raise UsageError("--furthest is of the windows of a study; name its folder (--study)")
        return measure(device, options.sizes or SIZES, options.repeats or 7)
    if not (options.study / "bank.npy").exists():
        raise UsageError(f"{options.study} holds no bank.npy; name a category's folder of a study (--study)")
    size = options.sizes and options.sizes[0]
    return coverage(options.study, device, options.draws, size, options.samples, options.furthest)


def _predict(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.detectors import load_active
    from benchmarks.predict import BATCHES, measure

    models, category, images = _detector(options)
    batches = options.batches or BATCHES
    files = [path.read_bytes() for path in images[: max(batches)]]
    return measure(load_active(models, category, options.device), files, batches, options.repeats or 15)


def _growth(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.growth import BATCHES, SIDES, measure
    from models.device import resolve_device

    return measure(
        options.out,
        resolve_device(options.device),
        bank_sizes=options.bank_sizes,
        batches=options.batches or BATCHES,
        sides=options.sides or SIDES,
        rounds=options.repeats or 7,
    )


def _http(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.http import measure

    models, category, images = _detector(options)
    return measure(
        models,
        category,
        images,
        device=options.device,
        threads=options.threads,
        seconds=options.seconds,
        url=options.url,
    )


def _detector(options: argparse.Namespace) -> tuple[Path, str, list[Path]]:
    """The model store, the category and the images that options name, or those made for it."""
    from benchmarks.detectors import prepare
    from models.configuration import DetectorConfiguration
    from models.encoders import ENCODERS

    own = (options.models, options.category, options.images)
    if not any(own):
        encoder = member("encoder", "dense_patch", ENCODERS, options)
        configuration = DetectorConfiguration.model_validate({"encoder": encoder})
        return prepare(options.folder, options.steps, options.device, configuration)
    if not all(own):
        raise UsageError("--models, --category and --images belong together; give all of them, or none")
    images = sorted(path for path in options.images.rglob("*") if path.is_file())
    if not images:
        raise UsageError(f"{options.images} holds no file; name a folder of images (--images)")
    return options.models, options.category, images
