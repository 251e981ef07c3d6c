"""The dense scan: how much faster one un-padded forward pass is than a window-by-window run, and how equal.

plumbline benchmark scan --json
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.machine import machine
from models.device import keep_float32
from models.encoders import (
    DensePatchConfiguration,
    Encoder,
    ResNet18PatchConfiguration,
    create_encoder,
    encode_per_window,
)
from models.geometry import ScanGeometry
from models.timing import interleave

MOST_SECONDS = 60.0  # of the timed runs of each


@torch.inference_mode()
def measure(device: torch.device, repeats: int = 7) -> dict[str, Any]:
    """Time both encoders on one image of random pixels, float32, random weights, in turns.

    Args:
        device: where to run.
        repeats: timed runs of the dense encoder after one warm-up; the slow ones end after a minute.

    Returns:
        Medians in seconds, ``speedup`` of ``DensePatch`` over ``ResNet18Patch``, and ``max_difference``, the largest
        difference between the dense embeddings and those of the window-by-window run of the same network.
    """
    facts = machine(device)
    torch.manual_seed(0)
    keep_float32()
    geometry = ScanGeometry()
    image = torch.rand(1, 3, geometry.image_size, geometry.image_size, device=device)
    dense = _encoder(DensePatchConfiguration(), geometry, device)
    reference = _encoder(ResNet18PatchConfiguration(), geometry, device)
    functions = {
        "resnet18_patch": lambda: reference(image),
        "dense_patch": lambda: dense(image),
        "dense_per_window": lambda: encode_per_window(dense, image),
    }
    timings = interleave(functions, repeats, device=device, seconds=MOST_SECONDS)
    return {
        **{f"{name}_seconds": timing.milliseconds / 1000 for name, timing in timings.items()},
        "dense_patch_spread": [min(timings["dense_patch"].seconds), max(timings["dense_patch"].seconds)],
        "speedup": timings["resnet18_patch"].ratio(timings["dense_patch"]),
        "max_difference": float((dense(image) - encode_per_window(dense, image)).abs().max()),
        "dense_patch_width": DensePatchConfiguration().width,
        "windows": geometry.grid_size**2,
        "machine": facts,
    }


def _encoder(
    configuration: DensePatchConfiguration | ResNet18PatchConfiguration, geometry: ScanGeometry, device: torch.device
) -> Encoder:
    return create_encoder(configuration, geometry).eval().to(device).to(memory_format=torch.channels_last)
