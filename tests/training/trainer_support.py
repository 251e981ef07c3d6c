"""A small run of the trainer, and what the tests of it share."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry
from training.pretext import CutPasteConfiguration, DenoisingConfiguration, RotationConfiguration
from training.run_files import CHECKPOINT_FILE, LOG_FILE
from training.trainer import (
    Progress,
    Trainer,
    TrainingConfiguration,
)

GEOMETRY = ScanGeometry(image_size=2 * ScanGeometry().patch_size)
ENCODER = DensePatchConfiguration(width=2)
CPU = torch.device("cpu")
CUTPASTE = CutPasteConfiguration(
    head_depth=1,
    head_width=8,
    patch_side=(0.5, 1.0),
    scar_width=(0.05, 0.2),
    scar_length=(0.25, 1.0),
    light=0.1,
    jitter=0.3,
    hue=0.1,
    opacity=(1.0, 1.0),
    visible=0.15,
    changed=0.01,
)
ROTATION = RotationConfiguration(head_depth=1, head_width=8)
DENOISING = DenoisingConfiguration(head_width=32)
pretexts = pytest.mark.parametrize("pretext", [CUTPASTE, ROTATION, DENOISING], ids=lambda pretext: pretext.name)
STEPS = 12


def make_images(count: int = 5) -> NDArray[np.uint8]:
    """Dark above, bright below, with coloured noise: there is something to learn of either task."""
    random = np.random.default_rng(0)
    light = np.linspace(40, 200, GEOMETRY.image_size)[None, :, None, None]
    noise = random.normal(0, 20, (count, GEOMETRY.image_size, GEOMETRY.image_size, 3))
    images: NDArray[np.uint8] = np.clip(light + noise, 0, 255).astype(np.uint8)
    return images


def make_configuration(**settings: Any) -> TrainingConfiguration:
    small = {"steps": STEPS, "batch_size": 4, "crop_patches": 1, "log_steps": 1, "checkpoint_seconds": 1e-9}
    return TrainingConfiguration(**({"pretext": CUTPASTE} | small | settings))


def make_trainer(folder: Path, images: NDArray[np.uint8] | None = None, **settings: Any) -> Trainer:
    images = make_images() if images is None else images
    return Trainer(make_configuration(**settings), ENCODER, GEOMETRY, images, CPU, folder)


def log_lines(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and accuracy of every line; the times differ from run to run."""
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [(line["step"], line["loss"], line["accuracy"]) for line in lines]


def checkpoint_step(folder: Path) -> int:
    step: int = torch.load(folder / CHECKPOINT_FILE, weights_only=True)["step"]
    return step


def assert_same_state(one: Any, other: Any) -> None:
    """Two checkpoints' contents, bit for bit: weights, momentum, random numbers, step."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_state(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_same_run(folder: Path, uninterrupted: Path) -> None:
    assert log_lines(folder) == log_lines(uninterrupted)
    assert_same_state(
        torch.load(folder / CHECKPOINT_FILE, weights_only=True),
        torch.load(uninterrupted / CHECKPOINT_FILE, weights_only=True),
    )


class StopAt:
    """A report that sends this process a signal after a step."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def __call__(self, progress: Progress) -> None:
        if progress.step == self.step:
            signal.raise_signal(self.number)
