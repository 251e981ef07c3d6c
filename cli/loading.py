"""The detector that a verb's options name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cli.errors import UsageError
from cli.progress import say
from models.store import ModelStore

if TYPE_CHECKING:
    from models.detector import Detector
    from models.inference import InferencePlan
    from models.operation import Operation


def load_detector(
    options: argparse.Namespace, category: str, version: int | None = None, plan: InferencePlan | None = None
) -> Detector:
    """A version of ``category``, or else the one asked for, or else the active one, on the device asked for.

    Args:
        plan: another than its own, as of ``Detector.load``.
    """
    from models.detector import Detector
    from models.device import set_threads

    set_threads(options.threads)
    store = ModelStore(options.models)
    folder = store.folder(category, version or chosen_version(options, category))
    return Detector.load(folder, options.device, plan)


def operation_in_force(options: argparse.Namespace, detector: Detector) -> Operation:
    """What a detector that ``load_detector`` gave decides by now, as the service does."""
    from models.operation import Operations

    return Operations(ModelStore(options.models)).in_force(detector)


def warn_of_thresholds_by_hand(detector: Detector, operation: Operation) -> None:
    """Say where thresholds that a person has set end: what is in other scores gets others, by the rate alone."""
    from models.operation import set_by_hand

    if set_by_hand(detector, operation):
        say(
            f"{detector.category}: warning: the thresholds of version {detector.version}, operation "
            f"{operation.number}, were set by hand and do not go on, for they are in its scores; the new version's are "
            f"set for the false-reject rate that they stood for, {operation.operating_point.false_reject_rate:.2%}"
        )


def chosen_version(options: argparse.Namespace, category: str) -> int:
    """The version asked for, or else the active one."""
    store = ModelStore(options.models)
    version: int | None = options.version_number or store.active(category)
    if version is None:
        raise UsageError(
            f"{category} has no active version; published are {store.versions(category)}: "
            f"name one, or plumbline models activate {category} N"
        )
    return version
