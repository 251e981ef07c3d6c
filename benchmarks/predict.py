"""Where the time of an inspection goes: every stage and the whole, beside the matrix product that it cannot undercut.

plumbline benchmark predict --json

The floor is one bare matrix product (or several, of ``MOST_SIDE``) with as many multiply-adds as the encoder and the
density have by torch's count, square, in float32 and in bfloat16, in turns with the rest. A stage that works outside
torch, as a search by FAISS does, counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import machine, peak_memory
from models.detector import Detector
from models.images import decode_image
from models.scan import at_once
from models.timing import Timing, interleave
from models.validity import summarise
from service.rendering import render_overlay

BATCHES = (1, 32)
MOST_SECONDS = 60.0  # of the timed runs of each function
MOST_SIDE = 4096  # of a matrix of the floor; larger ones are no faster by the multiply-add
FLOORS = {"product_float32": torch.float32, "product_bfloat16": torch.bfloat16}


def measure(
    detector: Detector, files: Sequence[bytes], batches: Sequence[int] = BATCHES, rounds: int = 15
) -> dict[str, Any]:
    """Time the stages and the whole.

    Args:
        detector: measured where it was loaded.
        files: image files, at least one; a batch larger than they are takes them again.
        batches: how many images each function works on in one call.
        rounds: timed runs of each, fewer where they are slow.

    Returns:
        For each batch, milliseconds an image of every function, ratios to the floors, images a second; and what was
        measured where. ``predict`` is ``Detector.predict``, image arrays in; ``look`` is ``scan.look``, inputs to
        anomaly maps; ``whole`` is file to heatmap PNG.
    """
    facts, device = machine(detector.scan.device), detector.scan.device
    images = [decode_image(file) for file in files]
    count = _multiply_adds(detector, images[0])
    return {
        "category": detector.category,
        "version": detector.version,
        "configuration": detector.scan.configuration.model_dump(mode="json"),
        "density": [member.density.facts() for member in detector.scan.members],
        "image_size": list(images[0].shape[:2]),
        "multiply_adds": count,
        "batches": {
            str(batch): _measure_batch(detector, files, batch, rounds, sum(count.values()), device) for batch in batches
        },
        "machine": facts,
    }


def _measure_batch(
    detector: Detector, files: Sequence[bytes], batch: int, rounds: int, multiply_adds: int, device: torch.device
) -> dict[str, Any]:
    taken = [files[number % len(files)] for number in range(batch)]
    functions = {**_functions(detector, taken), **_floors(multiply_adds * batch, device)}
    peak = peak_memory(functions["predict"], device)
    timings = {
        name: Timing(tuple(second / batch for second in timing.seconds))
        for name, timing in interleave(functions, rounds, device=device, seconds=MOST_SECONDS).items()
    }
    ratios = {
        f"{name}_over_{floor}": round(timings[name].ratio(timings[floor]), 3)
        for name in ("predict", "look")
        for floor in FLOORS
        if floor in timings
    }
    return {
        "timings": {name: timing.facts() for name, timing in timings.items()},
        "ratios": ratios,
        "predictions_per_second": round(1000 / timings["predict"].milliseconds, 2),
        "peak_bytes": peak,
    }


def _functions(detector: Detector, files: Sequence[bytes]) -> dict[str, Callable[[], object]]:
    """Every stage on what the stages before it gave, and the whole, each for all the files in one call."""
    scan = detector.scan
    threshold = detector.operating_point.pixel_threshold
    images = [decode_image(file) for file in files]
    placements = [placement for _, placement in map(detector.place, images)]
    inputs = np.stack([pixels for pixels, _ in map(detector.place, images)])
    look = scan.look(inputs)
    predictions = detector.predict(images)
    parts = at_once(inputs, scan.device)
    with torch.inference_mode():
        pixels = [scan.members[0].pixels(part) for part in parts]
        embeddings = [[each.permute(0, 3, 1, 2) for each in _encode(detector, part)] for part in parts]  # (b, D, h, w)
        score_maps = torch.from_numpy(look.score_maps).to(scan.device).chunk(len(parts))

    def judge() -> None:
        for score_map, anomaly_map, summary, errors, placement in zip(*look, placements, strict=True):
            detector.judge(score_map, anomaly_map, placement, summary=summary, score_errors=errors)

    def draw() -> None:
        for image, prediction in zip(images, predictions, strict=True):
            render_overlay(image, prediction, threshold)

    def whole() -> None:
        decoded = [decode_image(file) for file in files]
        for image, prediction in zip(decoded, detector.predict(decoded), strict=True):
            render_overlay(image, prediction, threshold)

    return {
        "decode": lambda: [decode_image(file) for file in files],
        "place": lambda: [detector.place(image) for image in images],
        "encode": lambda: [_encode(detector, part) for part in parts],
        "density": lambda: [_density(detector, *of_part) for of_part in zip(pixels, embeddings, strict=True)],
        "heatmap": lambda: [scan.members[0].upsample(part).cpu() for part in score_maps],
        "summarise": lambda: [
            summarise(of_part, torch.cat(found, dim=1)).cpu() for of_part, found in zip(pixels, embeddings, strict=True)
        ],
        "judge": judge,
        "draw": draw,
        "look": lambda: scan.look(inputs),
        "predict": lambda: detector.predict(images),
        "whole": whole,
    }


def _encode(detector: Detector, inputs: NDArray[np.uint8]) -> list[Tensor]:
    return [member.embed(inputs) for member in detector.scan.members]


@torch.inference_mode()
def _density(detector: Detector, pixels: Tensor, embeddings: Sequence[Tensor]) -> list[Tensor]:
    return [
        member.density.score_map(member.encoder, pixels, of_member)
        for member, of_member in zip(detector.scan.members, embeddings, strict=True)
    ]


def _multiply_adds(detector: Detector, image: NDArray[np.uint8]) -> dict[str, int]:
    """Of encoder and density, for one image."""
    inputs = detector.place(image)[0][np.newaxis]
    with torch.inference_mode():
        pixels = detector.scan.members[0].pixels(inputs)
        with FlopCounterMode(display=False) as encoders:
            embeddings = [member.encoder(pixels) for member in detector.scan.members]
        with FlopCounterMode(display=False) as densities:
            _density(detector, pixels, embeddings)
    return {"encode": encoders.get_total_flops() // 2, "density": densities.get_total_flops() // 2}


def _floors(multiply_adds: int, device: torch.device) -> dict[str, Callable[[], object]]:
    products = math.ceil(multiply_adds / MOST_SIDE**3)
    if not products:
        return {}
    side = round((multiply_adds / products) ** (1 / 3))

    def floor(dtype: torch.dtype) -> Callable[[], object]:
        left, right = torch.rand(2, side, side, device=device).to(dtype)

        def multiply() -> None:
            for _ in range(products):
                torch.mm(left, right)

        return multiply

    return {name: floor(dtype) for name, dtype in FLOORS.items()}
