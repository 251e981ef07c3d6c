"""What fitting the default density takes: seconds, peak memory, and what came out.

python -m benchmarks.fitting --images 250
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.configuration import DetectorConfiguration
from models.densities import KernelDensity
from models.device import set_threads
from models.encoders import create_encoder
from models.scan import Scan
from training.fit import WindowStream


def measure(count: int, configuration: DetectorConfiguration | None = None) -> dict[str, Any]:
    """Fit on all windows of ``count`` images by an untrained encoder; memory is this process's since it began."""
    configuration = configuration or DetectorConfiguration()
    torch.manual_seed(0)
    device = torch.device("cpu")
    density = KernelDensity()
    scan = Scan(configuration, create_encoder(configuration.encoder, configuration.geometry), density, device)
    images, before, start = _parts(count, configuration.geometry.image_size), _peak(), time.perf_counter()
    density.fit_stream(WindowStream(scan, images, None, seed=0))
    return {
        "images": count,
        "seconds": time.perf_counter() - start,
        "peak_gibibytes_before": before,
        "peak_gibibytes": _peak(),
        **density.facts(),
    }


def _parts(count: int, side: int) -> NDArray[np.uint8]:
    """Plates of one kind, with a gradient, coarse texture and noise."""
    random = np.random.default_rng(0)
    texture = np.kron(random.normal(0, 20, (side // 8, side // 8)), np.ones((8, 8)))
    light = np.linspace(100, 150, side)
    plates = np.empty((count, side, side, 3), np.uint8)
    for plate in plates:
        shade = np.roll(texture, random.integers(0, 8, 2), axis=(0, 1)) + light + random.normal(0, 6, (side, side))
        plate[:] = shade.clip(0, 255)[..., None]
    return plates


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run it and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    set_threads(options.threads)
    print(json.dumps(measure(options.images)))


if __name__ == "__main__":
    main()
