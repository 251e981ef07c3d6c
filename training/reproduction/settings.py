"""How long a table is worked on: seconds, minutes on a CPU, or the paper's own schedule."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from models.encoders import DensePatchConfiguration, EncoderConfiguration, ResNet18PatchConfiguration
from models.geometry import ScanGeometry
from training import presets
from training.reproduction.methods import Method
from training.trainer import Precision, TrainingConfiguration

PAPER_EPOCHS = 2048
# Section A.4, where a pretext task has no settings of its own.
PAPER = {**presets.PAPER, "batch_size": 32, "momentum": 0.9, "weight_decay": 3e-4}
# The authors' code fits its classifiers on at most so many training images.
PAPER_FIT = 20_000


class Size(BaseModel):
    """What decides what a study costs.

    Attributes:
        encoder: which network.
        steps: optimizer steps; None for the paper's 2048 epochs.
        batch_size: images a step; None for the paper's.
        learning_rate: at the beginning; None for the paper's.
        precision: that trainings compute in.
        image_size: side of whole images, in pixels; None for the data set's own. Patches have a geometry of their own.
        fit: embeddings that a classifier is fitted on, at most: of images, or of windows of images.
        test: test images that are scored, at most, drawn at random; None for all.
        seeds: trainings of each representation, unless another number is asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: EncoderConfiguration
    steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=2)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    precision: Precision = "float32"
    image_size: int | None = Field(default=None, ge=1)
    fit: int = Field(default=PAPER_FIT, ge=2)
    test: int | None = Field(default=None, ge=2)
    seeds: int = Field(default=5, ge=1)

    def training(self, method: Method, images: int, seed: int) -> TrainingConfiguration:
        """Stage 1 for ``images`` training images.

        An epoch of the paper is one pass over them and their copies, without the incomplete batch. A pretrained network
        is only tuned: its task's own number of steps holds, where the size has none. Another batch sees as many images
        in fewer or more steps.
        """
        asked = {"steps": self.steps, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        settings = {
            **PAPER,
            **presets.PRESETS.get(method.pretext.name, {}),
            **{name: value for name, value in asked.items() if value is not None},
        }
        usual = settings["batch_size"]
        batch = settings["batch_size"] = method.batch_size or usual
        if self.steps is None and method.encoder is None:
            settings["steps"] = PAPER_EPOCHS * max(1, method.copies * images // batch)
        elif batch != usual:
            settings["steps"] = max(1, settings["steps"] * usual // batch)
        fixed = {"pretext": method.pretext, "precision": self.precision, "seed": seed}
        return TrainingConfiguration.model_validate({**settings, **fixed})


SEMANTIC: Mapping[str, Size] = {
    "smoke": Size(encoder=ResNet18PatchConfiguration(stem="imagenet"), steps=3, batch_size=4, fit=64, test=64, seeds=1),
    "cpu": Size(
        encoder=DensePatchConfiguration(width=32, embedding="last"), steps=700, batch_size=32, image_size=32, seeds=1
    ),
    "paper": Size(encoder=ResNet18PatchConfiguration()),
}

MVTEC: Mapping[str, Size] = {
    "smoke": Size(encoder=DensePatchConfiguration(width=2, embedding="last"), steps=3, batch_size=4, fit=64, seeds=1),
    "cpu": Size(
        encoder=DensePatchConfiguration(width=16, embedding="last"),
        steps=600, batch_size=64, fit=4096,
    ),
    "paper": Size(encoder=ResNet18PatchConfiguration()),
}  # fmt: skip

MVTEC_GEOMETRY = ScanGeometry()  # the paper's: 256, 32, 4
