"""Which images a trained detector takes for none of its product: good, defective and other parts, blank frames.

python -m benchmarks.validity CATEGORY --models MODELS --data FOLDER --others FOLDER FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.detector import Detector
from models.device import set_threads
from models.images import read_image
from models.prediction import Verdict
from models.store import ModelStore
from models.validity import blank_frames
from training.data import GOOD, Sample, open_dataset

COLOUR = (180.0, 60.0, 20.0)  # of a plain frame beside the greys; the detector has learned with another
FRAMES = 8  # of a covered lens, of each noise
CAP_LEVEL, CAP_NOISE = 4.0, (0.5, 1.0, 2.0, 4.0, 8.0)  # grey levels


def measure(detector: Detector, data: Path, others: Sequence[Path], limit: int) -> dict[str, dict[str, float]]:
    """Of each kind of image: how many there are, the share that is invalid, and how far they are from good ones."""
    test = open_dataset(data, detector.category).test
    size = detector.geometry.image_size
    groups: dict[str, Iterable[NDArray[np.uint8]]] = {
        "good": _images([sample for sample in test if sample.defect == GOOD], limit),
        "defective": _images([sample for sample in test if sample.defect != GOOD], limit),
        **{f"other: {folder.name}": _images(open_dataset(folder.parent, folder.name).test, limit) for folder in others},
        "blank": blank_frames(size, np.array(COLOUR)),
        "lens cap": covered_lens(size),
    }
    found = {}
    for name, images in groups.items():
        predictions = [detector.predict([image])[0] for image in images]
        values = [prediction.invalidity or 0.0 for prediction in predictions]
        found[name] = {
            "images": len(predictions),
            "invalid": float(np.mean([prediction.verdict is Verdict.INVALID for prediction in predictions])),
            "least": min(values),
            "median": float(np.median(values)),
            "largest": max(values),
        }
        print(name, json.dumps({key: round(value, 3) for key, value in found[name].items()}), flush=True)
    return found


def covered_lens(size: int) -> NDArray[np.uint8]:
    """Black frames with the noise of a sensor, little and much: (n, size, size, 3)."""
    random = np.random.default_rng(1)
    shape = (FRAMES, size, size, 3)
    frames = np.concatenate([np.abs(random.normal(CAP_LEVEL, noise, shape)) for noise in CAP_NOISE])
    covered: NDArray[np.uint8] = np.clip(frames.round(), 0, 255).astype(np.uint8)
    return covered


def _images(samples: Sequence[Sample], limit: int) -> Iterator[NDArray[np.uint8]]:
    """Read at even distances where there are more than ``limit``."""
    for index in np.unique(np.linspace(0, len(samples) - 1, min(limit, len(samples))).round().astype(int)):
        yield read_image(samples[index].path)


def main() -> None:
    """Measure the latest version of a category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("category")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="folders of other categories")
    parser.add_argument("--limit", type=int, default=150, help="most images of a kind, taken at even distances")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    set_threads(options.threads)
    store = ModelStore(options.models)
    detector = Detector.load(store.folder(options.category, store.versions(options.category)[-1]), "cpu")
    if detector.validity is None:
        parser.error(f"{options.category} does not tell whether an image shows the product")
    print("validity", json.dumps(detector.validity.facts()))
    measure(detector, options.data, options.others, options.limit)


if __name__ == "__main__":
    main()
