"""Repeated shots of synthetic parts, for ``plumbline models repeatability``, and the data set to train on before.

python -m benchmarks.shots OUT
plumbline train tile --data OUT/data --models OUT/models --steps 400
plumbline models repeatability tile --shots OUT/shots --models OUT/models
plumbline models repeatability tile --shots OUT/noise --models OUT/models
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.synthetic import defects_of, generate, render

PARTS = 10  # of either kind, as gauge studies commonly have
SHOTS = 4
SENSOR_NOISE = 1.0  # deviation, in grey levels
FIRST = 1000  # parts that the data set does not hold


def main() -> None:
    """Write the data set and both kinds of shots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--product", default="tile")
    options = parser.parse_args()
    generate(options.out / "data", options.product, train=200)
    defects = defects_of(options.product)
    for place in range(2 * PARTS):
        defect = defects[place % len(defects)] if place >= PARTS else None
        name = f"{place:02d}_{defect or 'good'}"
        random = np.random.default_rng(place)
        first = render(options.product, defect, index=FIRST + place).image
        for shot in range(SHOTS):
            taken = render(options.product, defect, index=FIRST + place, shot=shot).image
            _write(options.out / "shots" / name / f"{shot}.png", taken)
            noisy = first + random.normal(0, SENSOR_NOISE, first.shape)
            _write(options.out / "noise" / name / f"{shot}.png", np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])


if __name__ == "__main__":
    main()
