"""Which density, and how large a bank: AUROC and time of each on a trained encoder and real images.

python -m benchmarks.density CATEGORY --data DATA --models MODELS
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.densities import (
    Density,
    DensityConfiguration,
    GaussianDensityConfiguration,
    GaussianMixtureConfiguration,
    KernelDensityConfiguration,
    NearestNeighboursConfiguration,
    OneClassSVMConfiguration,
    create_density,
)
from models.detector import Detector, Scan
from models.device import set_threads
from models.heatmap import peak_window
from models.images import Placement
from models.store import ModelStore
from training.data import load_images, load_mask, open_dataset
from training.evaluation import shown_pixels
from training.fit import FitConfiguration, draw_bank
from training.metrics import RankedPixels, auroc

BANK_SIZES = (1024, 4096, 8192, 32768)
DENSITIES: tuple[DensityConfiguration, ...] = (
    KernelDensityConfiguration(mode="exact"),
    KernelDensityConfiguration(mode="neighbours", neighbours=32),
    NearestNeighboursConfiguration(neighbours=1),
    GaussianDensityConfiguration(),
    GaussianMixtureConfiguration(),
    OneClassSVMConfiguration(kernel="linear"),
    OneClassSVMConfiguration(kernel="rbf"),
)


def measure(
    detector: Detector, data: Path, limit: int | None = None, bank_sizes: Sequence[int] = BANK_SIZES
) -> list[dict[str, Any]]:
    """Image and pixel AUROC, seconds to fit and milliseconds an image, for each density and bank size.

    Of an ensemble, the first member's. The banks are drawn from the images that the detector was fitted on. The medians
    of the times are compared within this run only.
    """
    dataset = open_dataset(data, detector.category)
    scan, size = detector.scan.members[0], detector.geometry.image_size
    fit = FitConfiguration.model_validate(detector.training["fit"])
    resize = scan.configuration.resize
    fitting, _ = fit.split(dataset.train)
    bank = draw_bank(scan, load_images(fitting, size=size, mode=resize).images, max(bank_sizes), fit.training.seed)
    np.random.default_rng(fit.training.seed).shuffle(bank)
    samples = dataset.test if limit is None else dataset.test[:: -(-len(dataset.test) // limit)]
    loaded = load_images([sample.path for sample in samples], size=size, mode=resize)
    masks = np.stack(
        [load_mask(sample, placement) for sample, placement in zip(samples, loaded.placements, strict=True)]
    )
    embeddings = [scan.embed(image[None]).flatten(0, 2).clone() for image in loaded.images]
    rows = []
    for count in bank_sizes:
        for configuration in DENSITIES:
            density, start = create_density(configuration, scan.device), time.perf_counter()
            density.fit(bank[:count])
            fitted = {"bank": density.samples, "fit_seconds": time.perf_counter() - start}
            scored = _score(scan, density, embeddings, masks, loaded.placements)
            rows.append({"density": configuration.model_dump(mode="json"), **fitted, **scored})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _score(
    scan: Scan,
    density: Density,
    embeddings: list[torch.Tensor],
    masks: NDArray[np.bool_],
    placements: Sequence[Placement],
) -> dict[str, float]:
    scores, times = [], []
    for queries in embeddings:
        start = time.perf_counter()
        scores.append(-density.score_samples(queries))
        times.append(time.perf_counter() - start)
    geometry = scan.configuration.geometry
    score_maps = np.stack(scores).reshape(-1, geometry.grid_size, geometry.grid_size)
    parts = torch.split(torch.from_numpy(score_maps).to(scan.device), 16)
    maps = np.concatenate([scan.upsample(part).cpu().numpy() for part in parts])
    image_scores = [
        score_map[peak_window(score_map, geometry, placement.content)]
        for score_map, placement in zip(score_maps, placements, strict=True)
    ]
    return {
        "image_auroc": auroc(np.asarray(masks.any(axis=(1, 2))), np.array(image_scores)),
        "pixel_auroc": RankedPixels(maps, masks, shown_pixels(placements)).auroc(),
        "milliseconds": 1000 * float(np.median(times)),
    }


def main() -> None:
    """Run the benchmark on the active version of a category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("category")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="most test images, taken at even distances")
    parser.add_argument("--bank-sizes", type=int, nargs="+", default=BANK_SIZES)
    options = parser.parse_args()
    set_threads(options.threads)
    store = ModelStore(options.models)
    version = store.active(options.category)
    if version is None:
        parser.error(f"{options.category} has no active version")
    measure(Detector.load(store.folder(options.category, version)), options.data, options.limit, options.bank_sizes)


if __name__ == "__main__":
    main()
