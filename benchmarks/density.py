"""Which density, and how large a bank: AUROC and time of each on a trained encoder and real images.

python -m benchmarks.density bottle --data DATA --models MODELS --out density --json

Of a detector that is an ensemble, the first member's encoder. It looks at test images, and is a study of the densities,
not a way to choose settings of a detector. Each line is kept when it is finished: run again, it goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.compression import KINDS, areas, changed, say
from benchmarks.detectors import load_active
from benchmarks.embedded import Embedded, change, find_data, points, study_parser
from benchmarks.machine import machine
from models.densities import (
    DensityConfiguration,
    GaussianDensityConfiguration,
    GaussianMixtureConfiguration,
    KernelDensityConfiguration,
    NearestNeighboursConfiguration,
    OneClassSVMConfiguration,
    create_density,
)
from models.device import resolve_device, set_threads
from training.bootstrap import resampled
from training.reproduction.report import aligned

BANK_SIZES = (1024, 4096, 8192, 32768)
REFERENCE = "kernel_density-exact"
DENSITIES: Mapping[str, DensityConfiguration] = {
    REFERENCE: KernelDensityConfiguration(mode="exact"),
    "kernel_density-neighbours-32": KernelDensityConfiguration(mode="neighbours", neighbours=32),
    "nearest_neighbours-1": NearestNeighboursConfiguration(neighbours=1),
    "gaussian_density": GaussianDensityConfiguration(),
    "gaussian_mixture": GaussianMixtureConfiguration(),
    "one_class_svm-linear": OneClassSVMConfiguration(kernel="linear"),
    "one_class_svm-rbf": OneClassSVMConfiguration(kernel="rbf"),
}


def study(ground: Embedded, bank_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A line for each density on each bank, the same embeddings for all densities.

    Returns:
        Image and pixel AUROC in points, and by how much they are above those of the exact kernel density on the same
        bank, with the 95 % paired bootstrap interval; seconds to fit, and milliseconds an image.
    """
    category = ground.detector.category
    counts = resampled(ground.labels)
    order = np.random.default_rng(0).permutation(len(ground.bank))  # the bank lies image after image
    lines = []
    for size in bank_sizes:
        chosen = np.sort(order[:size])
        for title in DENSITIES:
            say(f"{category}: {title} on {len(chosen)}")
            cell = ground.cell(f"{title}-{size}", partial(measure, ground, title, chosen, counts))
            if title == REFERENCE:
                before = cell
            facts = {name: cell[name] for name in ("bank", "fit_seconds", "milliseconds")}
            of_all = {f"{kind}_auroc": points(cell[kind]) for kind in KINDS} | changed([cell], before)
            lines.append({"category": category, "density": title, **facts, **of_all})
    return lines


def measure(ground: Embedded, title: str, chosen: NDArray[np.int64], counts: NDArray[np.float64]) -> dict[str, Any]:
    """One density of the chosen embeddings: AUROC of the test images and of samples of them, and times."""
    density, start = create_density(DENSITIES[title], ground.device), time.perf_counter()
    density.fit(ground.bank[chosen])
    fit_seconds = time.perf_counter() - start
    times = []

    def scores(queries: Tensor) -> Tensor:
        start = time.perf_counter()
        found = torch.from_numpy(density.score_samples(queries))
        times.append(time.perf_counter() - start)
        return found

    found = areas(ground.outcome(ground.score_maps(scores)), counts)
    milliseconds = 1000 * float(np.median(times))
    return {"bank": density.samples, "fit_seconds": fit_seconds, "milliseconds": milliseconds, **found}


def report(lines: Sequence[dict[str, Any]]) -> str:
    """The lines of a category as a table."""
    head = ["density", "bank", *(f"{kind} {what}" for kind in KINDS for what in ("AUROC", "to exact"))]
    rows = [
        [
            line["density"],
            str(line["bank"]),
            *(text for kind in KINDS for text in (f"{line[f'{kind}_auroc']:.2f}", change(line, kind))),
            f"{line['fit_seconds']:.1f}",
            f"{line['milliseconds']:.0f}",
        ]
        for line in lines
    ]
    return aligned([[*head, "seconds to fit", "ms an image"], *rows])


def main() -> None:
    """Study the active versions of categories."""
    parser = study_parser(__doc__, "density")
    parser.add_argument("--bank-sizes", type=int, nargs="+", default=BANK_SIZES, help="(default: %(default)s)")
    options = parser.parse_args()
    set_threads(options.threads)
    facts = machine(resolve_device(options.device))
    lines = []
    for category in options.categories:
        data, detector = find_data(options.data, category), load_active(options.models, category, options.device)
        part = max(options.bank_sizes)
        ground = Embedded(detector, data, options.out / category, options.limit, part)
        found = study(ground, options.bank_sizes)
        lines += found
        print(report(found), flush=True)
    if options.json:
        print(json.dumps({"lines": lines, "machine": facts}))


if __name__ == "__main__":
    main()
