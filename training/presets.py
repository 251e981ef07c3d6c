"""Settings of stage 1 that fit a pretext task, where nobody gives others."""

from __future__ import annotations

from typing import Any

PAPER = {"crop_patches": 1, "learning_rate": 0.01}  # section A.4; one window a crop
CONTRASTIVE = {**PAPER, "batch_size": 32, "steps": 5000}  # larger batches make embeddings uniform, and worse
ROTATION = {**PAPER, "batch_size": 64}  # of the authors' script; A.4 says 32

PRESETS: dict[str, dict[str, Any]] = {
    "contrastive": CONTRASTIVE,
    "distribution_augmented": CONTRASTIVE,
    "rotation": ROTATION,
    "rotnet": ROTATION,
}
"""Fields of ``TrainingConfiguration`` by the task's name; for other tasks and fields its own defaults hold."""
