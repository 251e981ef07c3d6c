"""Measure a detector on a data set's test images: metrics.json, a CSV line an image, plots."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cli.folders import check_folder
from cli.loading import load_detector, operation_in_force
from cli.options import add_common, add_data, add_models, add_version
from cli.progress import count_bar, say

SHOWN = (
    "image_auroc", "pixel_auroc", "image_ap", "pixel_ap", "aupro_30", "aupro_05", "image_f1_max",
    "false_reject_rate", "escape_rate",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("category", metavar="CATEGORY")
    add_data(parser)
    add_models(parser)
    add_version(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json, images.csv and the plots")
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate as the version decides now, and keep the metrics beside it as well, where that may be written to."""
    from models.store import ModelStore
    from models.store_errors import StoreReadOnly
    from training.data import open_dataset
    from training.evaluation import evaluate

    check_folder("--out", options.out)
    detector = load_detector(options, options.category)
    dataset = open_dataset(options.data, options.category, skip_broken=options.skip_broken)
    with count_bar() as bar:
        metrics = evaluate(
            detector,
            dataset,
            options.out,
            operation=operation_in_force(options, detector),
            skip_broken=options.skip_broken,
            progress=bar,
        )
    assert detector.version is not None  # it came from the store
    try:
        ModelStore(options.models).record(options.category, detector.version, "metrics", metrics)
    except StoreReadOnly as error:  # a folder that is mounted read-only, as a service has it, can be measured too
        say(f"warning: the metrics are not kept beside the version: {error}")
    for name in SHOWN:
        value = metrics[name]
        print(f"{name:18} {'-' if value is None else f'{value:.4f}'}")
    print(f"written to {options.out}")
    return metrics
