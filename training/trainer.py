"""Stage 1: the encoder learns a pretext task on random crops of good images (Sohn et al., appendix A.4)."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from models.device import computes_bfloat16
from models.encoders import Encoder, EncoderConfiguration, as_input, create_encoder
from models.geometry import ScanGeometry
from training.claim import differences
from training.presets import PRESETS
from training.pretext import (
    CutPasteConfiguration,
    InstanceConfiguration,
    NoneConfiguration,
    PretextConfiguration,
    create_pretext,
)
from training.run_files import CHECKPOINT_FILE, append_log, trim_log, write_checkpoint

Precision = Literal["float32", "bfloat16"]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


class TrainingSettingsError(TrainingError):
    """The settings do not fit the images, or the run that is to be resumed."""


class TrainingInterrupted(Exception):
    """Training was asked to stop and left a checkpoint to resume from."""


class TrainingConfiguration(BaseModel):
    """Settings of stage 1. Optimizer: SGD with momentum and one cosine cycle of the learning rate down to 0.

    A pretext task has defaults of its own for what fits it (``PRESETS``); what is given wins.

    Attributes:
        steps: optimizer steps.
        batch_size: crops a step.
        crop_patches: side of a crop in patches; 1 is the paper's, larger ones train many windows in one pass.
        precision: see ``resolve_precision``.
        checkpoint_seconds: time between checkpoints.
        log_steps: steps between two lines of the log.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pretext: PretextConfiguration = CutPasteConfiguration()
    steps: int = Field(default=2500, ge=1)
    batch_size: int = Field(default=48, ge=2)
    crop_patches: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=0.03, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=3e-4, ge=0, allow_inf_nan=False)
    precision: Literal["auto", Precision] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)  # what torch takes
    checkpoint_seconds: float = Field(default=60, gt=0, allow_inf_nan=False)
    log_steps: int = Field(default=10, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "pretext" not in given:
            return given
        pretext = given["pretext"]
        name = pretext.get("name") if isinstance(pretext, dict) else getattr(pretext, "name", None)
        return {**PRESETS.get(name, {}), **given} if isinstance(name, str) else given

    @field_validator("crop_patches")
    @classmethod
    def _one_window_a_crop(cls, crop_patches: int, info: ValidationInfo) -> int:
        if pretext := info.data.get("pretext"):
            check_crop(pretext, crop_patches)
        return crop_patches

    @property
    def steps_to_run(self) -> int:
        """The optimizer steps of stage 1; none without a pretext task."""
        return 0 if isinstance(self.pretext, NoneConfiguration) else self.steps


def check_crop(pretext: PretextConfiguration, crop_patches: int) -> None:
    """Refuse crops of many windows for a task that tells crops from each other.

    Raises:
        ValueError: with the task and what it takes.
    """
    if crop_patches > 1 and isinstance(pretext, InstanceConfiguration):
        raise ValueError(
            f"{pretext.name} tells crops from each other, so it takes one window of each: accepted crop_patches: 1"
        )


class Progress(NamedTuple):
    """Where training stands after ``step`` steps; loss and accuracy are means since the last report."""

    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float


class Trainer:
    """Trains one encoder; a run folder holds its checkpoint and its log.

    Args:
        configuration: the schedule and the pretext task.
        encoder: which network.
        geometry: patch size and stride.
        images: (N, S, S, 3) uint8 good images at the detector's input size.
        device: where to train.
        folder: the run's folder; made where it is missing.

    Attributes:
        encoder: the network being trained.
        task: the pretext task, with the head that is trained along.
        step: how many steps were run.

    Raises:
        TrainingSettingsError: if the crops are larger than the images.
    """

    def __init__(
        self,
        configuration: TrainingConfiguration,
        encoder: EncoderConfiguration,
        geometry: ScanGeometry,
        images: NDArray[np.uint8],
        device: torch.device,
        folder: Path,
    ) -> None:
        self.configuration = configuration
        self.device = device
        self.folder = folder
        self.crop_size = configuration.crop_patches * geometry.patch_size
        if configuration.steps_to_run and self.crop_size > images.shape[1]:
            raise TrainingSettingsError(
                f"crop_patches {configuration.crop_patches} makes crops of {self.crop_size} pixels, larger than the "
                f"{images.shape[1]}-pixel images; accepted: at most {images.shape[1] // geometry.patch_size}"
            )
        torch.manual_seed(configuration.seed)
        self._images = torch.from_numpy(images).to(device)
        network = create_encoder(encoder, geometry)
        self.encoder: Encoder = network.to(device).to(memory_format=torch.channels_last)
        self.task = create_pretext(configuration.pretext, encoder=network, crop_size=self.crop_size).to(device)
        self._optimizer = torch.optim.SGD(
            [*self.encoder.parameters(), *self.task.parameters()],
            lr=configuration.learning_rate,
            momentum=configuration.momentum,
            weight_decay=configuration.weight_decay,
        )
        precision = resolve_precision(configuration.precision, device)
        self._autocast = precision == "bfloat16"
        self.step = 0
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, accuracy since the log's last line
        self._counted = 0  # steps in the sums
        shapes = [(name, *tensor.shape) for name, tensor in network.state_dict().items()]
        settings = configuration.model_dump(mode="json", exclude={"checkpoint_seconds", "log_steps"})
        # Everything that must be the same for a resumed run to be the same run.
        self._identity: dict[str, Any] = {
            "training": {**settings, "precision": precision},
            "encoder": encoder.model_dump(mode="json"),
            "geometry": geometry.model_dump(mode="json"),
            "network": hashlib.sha256(str(shapes).encode()).hexdigest(),
            "images": {"shape": list(images.shape), "sha256": hashlib.sha256(images.tobytes()).hexdigest()},
            "device": device.type,
        }

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; False where there is none.

        Raises:
            TrainingSettingsError: if the checkpoint belongs to a run with other settings or images.
            TrainingError: if it is damaged.
        """
        path = self.folder / CHECKPOINT_FILE
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            identity = json.loads(state["identity"])
        except (RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise TrainingError(f"{path} is damaged and cannot be resumed; remove it to start afresh") from error
        if different := differences(identity, self._identity):
            raise TrainingSettingsError(
                f"{path} is a checkpoint of a run with other settings or images; resume with the same ones, or "
                f"discard it (plumbline train --restart): {different}"
            )
        self.encoder.load_state_dict(state["encoder"])
        self.task.load_state_dict(state["task"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self._counted = state["step"], state["counted"]
        self._sums.copy_(state["sums"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        return True

    def run(self, report: Callable[[Progress], None] | None = None) -> Encoder:
        """Train to the last step.

        Args:
            report: called every ``log_steps`` steps.

        Returns:
            The trained encoder, in evaluation mode.

        Raises:
            TrainingInterrupted: on SIGINT or SIGTERM, after a checkpoint.
            TrainingError: if the loss is not finite.
            RunWriteError: there is no space for the log or a checkpoint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.step == 0:
            self.encoder.initialise()
            self.task.prepare(self.encoder, self._crops)
        self.encoder.train()
        trim_log(self.folder, self.step)
        with _stop_signal() as stop:
            self._run(stop, report)
        return self.encoder.eval()

    def _run(self, stop: threading.Event, report: Callable[[Progress], None] | None) -> None:
        settings = self.configuration
        started, first = time.monotonic(), self.step
        saved = started
        while self.step < settings.steps_to_run:
            self._sums += self._train_step()
            self._counted += 1
            if self.step % settings.log_steps == 0 or self.step == settings.steps:
                loss, accuracy = (self._sums / self._counted).tolist()
                self._check(loss)
                speed = (self.step - first) / (time.monotonic() - started)
                progress = Progress(
                    self.step,
                    settings.steps,
                    loss,
                    accuracy,
                    speed * settings.batch_size,
                    (settings.steps - self.step) / speed,
                )
                append_log(self.folder, progress._asdict())
                if report:
                    report(progress)
                self._sums.zero_()
                self._counted = 0
                # Only here, where the loss was just seen to be finite: a checkpoint is never one of a broken run.
                if time.monotonic() - saved > settings.checkpoint_seconds or self.step == settings.steps:
                    self.save_checkpoint()
                    saved = time.monotonic()
            if stop.is_set():
                self._check(float(self._sums[0]))
                self.save_checkpoint()
                path = self.folder / CHECKPOINT_FILE
                raise TrainingInterrupted(f"stopped after step {self.step} of {settings.steps}; resume from {path}")

    def _train_step(self) -> Tensor:
        """One optimizer step; loss and accuracy, (2,) on the device, so that nothing waits for them."""
        settings = self.configuration
        rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / settings.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        crops = self._crops()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            loss, accuracy = self.task(self.encoder, crops)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self.step += 1
        return torch.stack([loss.detach().double(), accuracy.detach().double()])

    def _crops(self) -> Tensor:
        """Random crops of random images: (B, 3, C, C) in [0, 1]."""
        count, side, crop = self.configuration.batch_size, self._images.shape[1], self.crop_size
        image = torch.randint(len(self._images), (count, 1, 1))
        top, left = torch.randint(side - crop + 1, (2, count, 1, 1))
        offset = torch.arange(crop)
        crops = self._images[image, top + offset[:, None], left + offset]  # (B, C, C, 3)
        return as_input(crops)

    def save_checkpoint(self) -> None:
        """Write the whole state.

        Raises:
            TrainingError: if a weight is not finite, as after a last step that was too large; nothing is written then.
            RunWriteError: there is no space; the old checkpoint stays.
        """
        state: dict[str, Any] = {
            "identity": json.dumps(self._identity),
            "step": self.step,
            "encoder": self.encoder.state_dict(),
            "task": self.task.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "sums": self._sums,
            "counted": self._counted,
        }
        for tensor in (*state["encoder"].values(), *state["task"].values()):
            if not tensor.isfinite().all():
                self._check(math.nan, "a weight")
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        write_checkpoint(self.folder, state)

    def _check(self, value: float, what: str = "the loss") -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{what} became {value} by step {self.step}; lower the learning rate "
                f"(now {self.configuration.learning_rate:g}) or train in float32; the last checkpoint is kept"
            )


def resolve_precision(precision: Literal["auto", Precision], device: torch.device) -> Precision:
    """What a training computes in: of ``auto``, bfloat16 autocast where the device has instructions for it."""
    if precision != "auto":
        return precision
    return "bfloat16" if computes_bfloat16(device) else "float32"


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Set by SIGINT or SIGTERM, so that a step is never cut in half; a second signal acts as it did before."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: object) -> None:
        restore()  # first: a second signal that came in while the event is being set would wait for ever
        stop.set()

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
