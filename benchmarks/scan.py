"""The dense scan: how much faster one un-padded forward pass is than a window-by-window run, and how equal.

plumbline benchmark scan --json
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from models.encoders import (
    DensePatchConfiguration,
    Encoder,
    ResNet18PatchConfiguration,
    create_encoder,
    encode_per_window,
)
from models.geometry import ScanGeometry


@torch.inference_mode()
def measure(device: torch.device, repeats: int = 7) -> dict[str, Any]:
    """Time both encoders on one image of random pixels, float32, random weights.

    Args:
        device: where to run.
        repeats: timed runs of the dense encoder after one warm-up; the slow ones run a third as often.

    Returns:
        Medians in seconds, ``speedup`` of ``DensePatch`` over ``ResNet18Patch``, and ``max_difference``, the largest
        difference between the dense embeddings and those of the window-by-window run of the same network.
    """
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    geometry = ScanGeometry()
    image = torch.rand(1, 3, geometry.image_size, geometry.image_size, device=device)
    dense = _encoder(DensePatchConfiguration(), geometry, device)
    reference = _encoder(ResNet18PatchConfiguration(), geometry, device)
    slow_repeats = max(1, repeats // 3)
    dense_times = _times(lambda: dense(image), repeats, device)
    per_window_times = _times(lambda: encode_per_window(dense, image), slow_repeats, device)
    reference_times = _times(lambda: reference(image), slow_repeats, device)
    dense_seconds = statistics.median(dense_times)
    return {
        "resnet18_patch_seconds": statistics.median(reference_times),
        "dense_patch_seconds": dense_seconds,
        "dense_patch_spread": [min(dense_times), max(dense_times)],
        "dense_per_window_seconds": statistics.median(per_window_times),
        "speedup": statistics.median(reference_times) / dense_seconds,
        "max_difference": float((dense(image) - encode_per_window(dense, image)).abs().max()),
        "dense_patch_width": DensePatchConfiguration().width,
        "windows": geometry.grid_size**2,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _encoder(
    configuration: DensePatchConfiguration | ResNet18PatchConfiguration, geometry: ScanGeometry, device: torch.device
) -> Encoder:
    return create_encoder(configuration, geometry).eval().to(device).to(memory_format=torch.channels_last)


def _times(function: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    times = []
    for attempt in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if attempt:  # the first is the warm-up
            times.append(time.perf_counter() - start)
    return times
