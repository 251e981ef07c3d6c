"""Engines against each other on one image: torch, ONNX Runtime and OpenVINO, whole detector, in turns within one run.

python -m benchmarks.engines --json
python -m benchmarks.engines --models artifacts --category bottle --json
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.detectors import load_active
from benchmarks.machine import machine
from models.allocator import keep_freed_memory
from models.calibration_set import calibrate
from models.configuration import DetectorConfiguration
from models.densities import create_density
from models.detector import Detector
from models.device import set_threads
from models.encoders import create_encoder
from models.export import MODELS, export
from models.inference import FLOAT32, InferencePlan
from models.scan import Scan, by_plan
from models.sessions import OnnxSession, OpenVinoSession
from models.timing import interleave

BANK = 8192  # embeddings of the detector of random images


def measure(detector: Detector, rounds: int = 15) -> dict[str, Any]:
    """Time a detector's whole scan of one image by each engine.

    Args:
        detector: on the CPU.
        rounds: timed runs of each after one warm-up.

    Returns:
        By engine: the timing, ``ratio`` to torch in float32 (below 1 is faster), and ``difference``, the largest of the
        score map to torch's in float32, in standard deviations of that map. *torch bfloat16* is the encoder in bfloat16
        and the density in float32, as a plan of that precision is; OpenVINO's hint reaches the density too.
    """
    facts = machine()
    image = detector.calibration_set.inputs[:1]
    with TemporaryDirectory() as folder:
        models = {form: Path(folder, form) for form in MODELS}
        for form, place in models.items():
            export(detector, detector.own_operation, place, form, check_images=1)
        onnx, xml = (models[form] / MODELS[form] for form in MODELS)
        looks: dict[str, Callable[[NDArray[np.uint8]], Any]] = {
            "torch float32": by_plan(detector.scan, FLOAT32).look,
            "torch bfloat16": by_plan(detector.scan, InferencePlan(precision="bfloat16")).look,
            "onnxruntime float32": OnnxSession(onnx).look,
            "openvino float32": OpenVinoSession(xml).look,
            "openvino bfloat16": OpenVinoSession(xml, precision="bf16").look,
        }
        functions = {name: (lambda look=look: look(image)) for name, look in looks.items()}
        timings = interleave(functions, rounds)
        maps = {name: look(image).score_maps for name, look in looks.items()}
    first = "torch float32"
    return {
        "engines": {
            name: {
                **timing.facts(),
                "ratio": timing.ratio(timings[first]),
                "difference": float(np.abs(maps[name] - maps[first]).max() / maps[first].std()),
            }
            for name, timing in timings.items()
        },
        "encoder": detector.scan.configuration.encoder.model_dump(mode="json"),
        "density": [member.density.facts() for member in detector.scan.members],
        "machine": facts,
    }


def random_detector(bank: int = BANK) -> Detector:
    """The default detector with random weights, on images of smooth noise: it takes as long as a trained one."""
    torch.manual_seed(0)
    configuration = DetectorConfiguration()
    side = configuration.geometry.image_size
    coarse = torch.rand(8, 3, 16, 16)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    images = (255 * smooth).byte().permute(0, 2, 3, 1).contiguous().numpy()
    encoder = create_encoder(configuration.encoder, configuration.geometry)
    density = create_density(configuration.density)
    scan = Scan(configuration, encoder, density, torch.device("cpu"))
    embeddings = scan.embed(images[:-2]).flatten(0, 2)
    density.fit(embeddings[torch.randperm(len(embeddings))[:bank]].numpy())
    calibration_set = calibrate(scan, configuration.geometry, images[-2:], [configuration.geometry.square] * 2)
    return Detector("random", scan, calibration_set, data_fingerprint="")


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a store of trained versions (default: random weights)")
    parser.add_argument("--category", help="whose active version, with --models")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if (options.models is None) != (options.category is None):
        parser.error("--models and --category belong together")
    keep_freed_memory()  # as ``plumbline`` does
    set_threads(options.threads)
    own = options.models is not None
    detector = load_active(options.models, options.category, "cpu") if own else random_detector()
    result = measure(detector, options.rounds)
    for name, facts in result["engines"].items():
        print(f"{name:20} {facts['milliseconds']:8.1f} ms   {facts['ratio']:.2f} of torch   {facts['difference']:.1e}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
