"""Settings of stage 1 that fit a pretext task, where nobody gives others."""

from __future__ import annotations

from typing import Any

PAPER = {"crop_patches": 1, "learning_rate": 0.01}  # section A.4; one window a crop
CONTRASTIVE = {**PAPER, "batch_size": 32, "steps": 5000}  # larger batches make embeddings uniform, and worse
ROTATION = {**PAPER, "batch_size": 64}  # of the authors' script; A.4 says 32
# Of the authors' script; for a network that has learned already, so that it forgets little.
MEAN_SHIFTED = {
    "crop_patches": 1,
    "batch_size": 64,
    "learning_rate": 1e-5,
    "momentum": 0.0,
    "weight_decay": 5e-5,
    "steps": 500,
}

PRESETS: dict[str, dict[str, Any]] = {
    "contrastive": CONTRASTIVE,
    "distribution_augmented": CONTRASTIVE,
    "mean_shifted": MEAN_SHIFTED,
    "rotation": ROTATION,
    "rotnet": ROTATION,
}
"""Fields of ``TrainingConfiguration`` by the task's name; for other tasks and fields its own defaults hold."""
