"""Measure how fast a version can compute on this machine, and publish it with the fastest plan, calibrated anew."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cli.errors import UsageError
from cli.loading import chosen_version, warn_of_thresholds_by_hand
from cli.options import add_common, add_models, add_version, positive_integer
from cli.progress import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.tuning import Measured

ROUNDS = 15
SINGLE = 1  # images of the batch that decides
TOGETHER = 32  # and of the one that is measured beside it on a GPU; a CPU scans images one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("category", metavar="CATEGORY")
    add_models(parser)
    add_version(parser)
    parser.add_argument("--dry-run", action="store_true", help="measure and print only; publish nothing")
    parser.add_argument("--activate", action="store_true", help="make the new version the active one")
    parser.add_argument(
        "--rounds", type=positive_integer, default=ROUNDS, help="timed runs of each (default: %(default)s)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="measure torch.compile too: it needs a compiler, and minutes"
    )
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, publish. Interrupted, it leaves nothing behind.

    Raises:
        UsageError: not even float32 runs here.
        StoreReadOnly: this process may not write to the category, and it is no dry run.
    """
    import torch

    from models.configuration import configuration_of
    from models.detector import Detector
    from models.device import set_threads
    from models.inference import FLOAT32, InferenceError
    from models.operation import Operations
    from models.store import ModelStore
    from models.tuning import candidates, fastest, measure, tuned

    set_threads(options.threads)
    store = ModelStore(options.models)
    if not options.dry_run:
        store.check_writable(options.category)
    version = chosen_version(options, options.category)
    # By float32, which runs everywhere, whatever its own plan needs; a version without one is of float32.
    detector = Detector.load(store.folder(options.category, version), options.device, FLOAT32)
    assert detector.manifest is not None
    own = configuration_of(detector.manifest).inference
    device = detector.scan.device
    plans = candidates(device, compiled=options.compile)
    batches = (SINGLE, TOGETHER) if device.type == "cuda" else (SINGLE,)
    say(
        f"{options.category}: version {version}, {own.name}; {len(plans)} plans on "
        f"{len(detector.calibration)} calibration images, {device}, {torch.get_num_threads()} threads"
    )
    try:
        measured, tried, failed = measure(detector, [*plans, *({own} - set(plans))], batches, options.rounds)
    except InferenceError as error:
        raise UsageError(f"{options.category}: {error}") from error
    _print(measured, failed, batches)
    chosen = fastest(measured, own, SINGLE)
    kept = tried[chosen]
    del tried  # the others' networks and kernels
    result: dict[str, Any] = {
        "category": options.category,
        "of_version": version,
        "own": own.model_dump(),
        "chosen": chosen.model_dump(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "measured": [each.facts() for each in measured],
        "failed": failed,
        "version": None,
    }
    if chosen == own:
        print(f"{options.category}: version {version} has the fastest plan, {own.name}; nothing is published")
        return result
    if options.dry_run:
        print(f"{options.category}: the fastest is {chosen.name}; a dry run publishes nothing")
        return result
    record = {name: value for name, value in result.items() if name not in ("category", "version")}
    operations = Operations(store)
    operation = operations.in_force(detector)
    warn_of_thresholds_by_hand(detector, operation)
    made = tuned(detector, kept, record, operation.operating_point)
    result["version"] = number = operations.publish(made, activate=options.activate)
    state = "and active" if options.activate else "and not active: compare the two, then activate it"
    inherited = operations.history(options.category, number)  # with the region of interest
    before, after = operation.operating_point, inherited[-1].operating_point if inherited else made.operating_point
    print(
        f"{options.category}: version {number} is version {version} by {chosen.name}, published {state}; "
        f"false-reject rate {after.false_reject_rate:.2%}, image threshold {before.image_threshold:.4f} -> "
        f"{after.image_threshold:.4f}"
    )
    return {**result, "image_threshold": after.image_threshold, "false_reject_rate": after.false_reject_rate}


def _print(measured: Sequence[Measured], failed: dict[str, str], batches: Sequence[int]) -> None:
    """A line for each plan: milliseconds an image with their quartiles, and how its scores differ from float32's."""
    times = "".join(f"{f'ms an image, {batch}':>27}" for batch in batches)
    print(f"{'plan':22}{times}{'largest':>11}{'mean':>11}{'rank':>9}")
    for each in measured:
        columns = "".join(
            f"{each.milliseconds[batch]:>11.2f} {f'[{low:.2f}, {high:.2f}]':>15}"
            for batch, (low, high) in each.spread.items()
        )
        rank = "-" if each.rank_correlation is None else f"{each.rank_correlation:.4f}"
        print(f"{each.plan.name:22}{columns}{each.largest_difference:>11.2g}{each.mean_difference:>+11.2g}{rank:>9}")
    for name, reason in failed.items():
        print(f"{name:22} does not run here: {reason}")
