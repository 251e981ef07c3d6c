"""From good images to a published detector: split, stage 1 (encoder), stage 2 (density), calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from models.calibration import threshold_rank
from models.calibration_set import CalibrationSet, calibrate
from models.configuration import DetectorConfiguration
from models.densities import (
    DensityConfiguration,
    KernelDensity,
    KernelDensityConfiguration,
    RotationClassifier,
    RotationClassifierConfiguration,
    create_density,
)
from models.detector import Detector, member_folder
from models.encoders import create_encoder
from models.geometry import ScanGeometry
from models.inference import InferenceError, embedder, network_of
from models.scan import Ensemble, Scan, combine
from models.validity import Validity, blank_frames
from training.data import DataError, Dataset, load_images, split_calibration
from training.pretext import PretextConfiguration, PretextTask, Rotation, RotationTasks
from training.trainer import (
    Progress,
    Trainer,
    TrainingConfiguration,
    TrainingError,
    TrainingSettingsError,
    check_crop,
)

VALIDITY_REFERENCES = 128  # good images that an image's summary is compared with; more are slower and tell no more
BANK_SIZE = 4096  # embeddings that a density other than a kernel density is fitted on
SMALLEST_DATASET = 8  # good images; fewer leave a calibration of one image and a density that has seen nothing
ADVISED = 20  # and as many for a threshold that means something

Count = Callable[[str, int, int], None]


class FitConfiguration(BaseModel):
    """Everything that decides what a training run makes.

    Attributes:
        detector: encoder, density, geometry.
        training: stage 1.
        ensemble: members of each pretext task, of the seeds ``training.seed``, ``training.seed + 1``, ...
        pretexts: pretext tasks of further members, such as other distribution augmentations.
        bank_size: embeddings the density is fitted on, the same number from every image, drawn at random; None is all
            of them for a kernel density, and 4096 for the others.
        calibration_fraction: share of the good images held out for the thresholds.
        group_pattern: a regular expression whose first group, in a file name, names the part or lot; images of one
            part or lot are never on both sides of the split.
        false_reject_rate: the share of good parts to reject; None is 1 %, or the smallest honest rate if larger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    detector: DetectorConfiguration = DetectorConfiguration()
    training: TrainingConfiguration = TrainingConfiguration()
    ensemble: int = Field(default=1, ge=1)
    pretexts: tuple[PretextConfiguration, ...] = ()
    bank_size: int | None = Field(default=None, ge=1)
    calibration_fraction: float = Field(default=0.25, gt=0, lt=1)
    group_pattern: str | None = None
    false_reject_rate: float | None = Field(default=None, gt=0, lt=1)

    @field_validator("pretexts")
    @classmethod
    def _members_differ(
        cls, pretexts: tuple[PretextConfiguration, ...], info: ValidationInfo
    ) -> tuple[PretextConfiguration, ...]:
        training = info.data.get("training")
        every = [*pretexts, training.pretext] if training else pretexts
        if any(every.count(pretext) > 1 for pretext in every):
            raise ValueError("members of an ensemble differ in their pretext task or its settings; one is there twice")
        if training:
            for pretext in pretexts:
                check_crop(pretext, training.crop_patches)
        return pretexts

    @model_validator(mode="after")
    def _a_rotation_classifier_is_trained(self) -> FitConfiguration:
        if not isinstance(self.detector.density, RotationClassifierConfiguration):
            return self
        for pretext in (self.training.pretext, *self.pretexts):
            if not isinstance(pretext, RotationTasks):
                raise ValueError(
                    "the density rotation_classifier scores with the head of rotation prediction, which the pretext "
                    f"task {pretext.name} does not train; use the pretext task rotation or rotnet, or another density"
                )
        return self

    def held_out(self, paths: Sequence[Path]) -> NDArray[np.bool_]:
        """Which of N good images are held out for the thresholds, (N,); the detector is fitted on the others.

        Raises:
            DataError: as ``split_calibration``.
        """
        _, calibration = split_calibration(
            paths, fraction=self.calibration_fraction, seed=self.training.seed, group_pattern=self.group_pattern
        )
        chosen = set(calibration)
        return np.array([path in chosen for path in paths])

    @property
    def members(self) -> tuple[TrainingConfiguration, ...]:
        """Stage 1 of every member of the ensemble; of one, where it is none."""
        return tuple(
            self.training.model_copy(update={"pretext": pretext, "seed": self.training.seed + number})
            for pretext in (self.training.pretext, *self.pretexts)
            for number in range(self.ensemble)
        )


class Fitted(NamedTuple):
    """A detector that is not published yet, and the files that were passed over."""

    detector: Detector
    skipped: list[tuple[Path, str]]


def fit(
    dataset: Dataset,
    configuration: FitConfiguration,
    *,
    device: torch.device,
    folder: Path,
    skip_broken: bool = False,
    stage: Callable[[str], None] = lambda text: None,
    report: Callable[[Progress], None] | None = None,
    count: Count | None = None,
) -> Fitted:
    """Train a detector of ``dataset``'s good images.

    Args:
        folder: the run's folder; a checkpoint that lies there is resumed. An ensemble's members are trained one after
            the other, all but the first in a folder of its own below; one whose checkpoint is finished is only read.
        skip_broken: pass over files that cannot be read. Copies of an image are passed over in any case.
        stage: told what is being done.
        report: told how stage 1 goes.
        count: told how stage 2 goes, see ``WindowStream``.

    Raises:
        DataError: on images that cannot be read, or too few of them for what is asked.
        TrainingSettingsError: on settings that do not fit together, or a plan that does not run on the device.
        TrainingError, TrainingInterrupted: see ``Trainer.run``; also where the density cannot learn from embeddings,
            such as those of an encoder that has collapsed.
    """
    settings = configuration.detector
    stage(f"reading {len(dataset.train)} good images")
    # A copy among the calibration images would be judged by a detector that has learned it.
    loaded = load_images(
        dataset.train, size=settings.geometry.image_size, mode=settings.resize, skip_broken=skip_broken
    ).without_copies()
    if len(loaded.paths) < SMALLEST_DATASET:
        raise DataError(
            f"{dataset.root} has {len(loaded.paths)} readable good images of {dataset.category}, copies aside; at "
            f"least {SMALLEST_DATASET} are needed, {ADVISED} or more advised"
        )
    if len(loaded.paths) < ADVISED:
        stage(f"warning: {len(loaded.paths)} good images are few for a threshold; {ADVISED} or more are advised")
    # Now, while the files are as they were read: in hours of training they may change.
    fingerprint = replace(dataset, train=loaded.paths).fingerprint()
    held_out = configuration.held_out(loaded.paths)
    images, calibration_images = loaded.images[~held_out], loaded.images[held_out]
    if configuration.false_reject_rate is not None:
        try:
            threshold_rank(len(calibration_images), configuration.false_reject_rate)
        except ValueError as error:
            raise DataError(str(error)) from error
    scan = _learn(configuration, images, device, folder, stage, report, count)
    stage(f"calibration on {len(calibration_images)} held-out good images")
    contents = [placement.content for placement in compress(loaded.placements, held_out)]
    calibration_set = calibrate(scan, settings.geometry, calibration_images, contents)
    validity = fit_validity(scan, images, calibration_set, configuration.training.seed)
    skipped = [*dataset.skipped, *loaded.skipped]
    detector = Detector(
        dataset.category,
        scan,
        calibration_set,
        calibration_set.scores.operating_point(configuration.false_reject_rate),
        validity=validity,
        data_fingerprint=fingerprint,
        training={
            "fit": configuration.model_dump(mode="json", exclude={"detector"}),
            "good_images": len(images),
            "skipped_images": len(skipped),
        },
    )
    return Fitted(detector, skipped)


def _learn(
    configuration: FitConfiguration,
    images: NDArray[np.uint8],
    device: torch.device,
    folder: Path,
    stage: Callable[[str], None],
    report: Callable[[Progress], None] | None,
    count: Count | None,
) -> Scan | Ensemble:
    """Both stages of every member, one after the other."""
    settings = configuration.detector
    _check_runs(settings, device)
    trainings = configuration.members
    folders = [member_folder(folder, number) for number in range(len(trainings))]

    def prepared(training: TrainingConfiguration, place: Path) -> Trainer:
        trainer = Trainer(training, settings.encoder, settings.geometry, images, device, place)
        size = bank_size_for(settings.density, configuration.bank_size)
        bank = len(images) * windows_of_each(settings.geometry, len(images), size)
        try:  # before hours of training, not after
            create_density(settings.density).check_samples(bank, trainer.encoder.dimension)
        except ValueError as error:
            raise DataError(str(error)) from error
        trainer.resume()
        return trainer

    if len(trainings) > 1:  # what does not fit is refused now, not after hours of the other members' training
        for training, place in zip(trainings, folders, strict=True):
            prepared(training, place)
    members = []
    for number, (training, place) in enumerate(zip(trainings, folders, strict=True), start=1):
        which = f"member {number} of {len(trainings)}, " if len(trainings) > 1 else ""
        trainer = prepared(training, place)
        steps = f", from step {trainer.step} of {training.steps}" if training.steps_to_run else ""
        stage(f"{which}stage 1: {training.pretext.name}{steps}")
        encoder = trainer.run(report)
        stage(f"{which}stage 2: {settings.density.name}")
        member = Scan(settings, encoder, create_density(settings.density, device), device)
        fit_density(member, trainer.task, images, configuration.bank_size, training.seed, count)
        if isinstance(member.density, KernelDensity):
            stage(f"{which}{member.density.summary()}")
        members.append(member)
    return combine(members)


def _check_runs(settings: DetectorConfiguration, device: torch.device) -> None:
    """Refuse what will not scan here, before hours of training: a geometry that the encoder does not take, a plan."""
    plan = settings.inference.resolved(device)
    try:
        encoder = create_encoder(settings.encoder, settings.geometry).eval().to(device)
        embedder(network_of(encoder, plan), plan, device)
    except (ValueError, InferenceError) as error:
        raise TrainingSettingsError(str(error)) from error


def fit_density(
    scan: Scan,
    task: PretextTask,
    images: NDArray[np.uint8],
    bank_size: int | None,
    seed: int,
    count: Count | None = None,
) -> None:
    """Stage 2: the scan's density learns from the images' embeddings, or adopts the trained task's head.

    Args:
        bank_size: as ``FitConfiguration.bank_size``.
        count: see ``WindowStream``.

    Raises:
        TrainingError: if the density cannot learn from these embeddings.
    """
    density = scan.density
    if isinstance(density, RotationClassifier):
        assert isinstance(task, Rotation)  # FitConfiguration has seen to it
        density.adopt(task.head)
        return
    size = bank_size_for(scan.configuration.density, bank_size)
    try:
        if isinstance(density, KernelDensity):
            density.fit_stream(WindowStream(scan, images, size, seed, count), seed)
        else:
            density.fit(draw_bank(scan, images, size, seed, count))
    except ValueError as error:
        raise TrainingError(f"{scan.configuration.density.name} cannot be fitted: {error}") from error


def fit_validity(
    scan: Scan | Ensemble, images: NDArray[np.uint8], calibration_set: CalibrationSet, seed: int
) -> Validity:
    """What tells images that do not show the product.

    Args:
        images: (N, S, S, 3), those that the scan has learned from; at most ``VALIDITY_REFERENCES`` are compared with.
    """
    count = min(len(images), VALIDITY_REFERENCES)
    chosen = np.random.default_rng(seed).choice(len(images), count, replace=False)
    blank = blank_frames(images.shape[1], images.mean(axis=(0, 1, 2)))

    def summaries(inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate([scan.look(one[None]).summaries for one in inputs])

    return Validity.fit(summaries(images[chosen]), calibration_set.summaries, summaries(blank))


def bank_size_for(density: DensityConfiguration, asked: int | None) -> int | None:
    """About how many embeddings a density is fitted on; None for all there are."""
    return asked if asked is not None or isinstance(density, KernelDensityConfiguration) else BANK_SIZE


def windows_of_each(geometry: ScanGeometry, images: int, size: int | None) -> int:
    """How many windows of every image make a bank of about ``size`` embeddings: at least one, at most all."""
    every = geometry.grid_size**2
    return every if size is None else min(every, max(1, round(size / images)))


class WindowStream:
    """About ``size`` embeddings, the same number from random windows of every image, or all; each time embedded anew.

    Args:
        scan: which embeds; its density is not looked at.
        images: (N, S, S, 3).
        size: how many embeddings; None for those of all windows.
        seed: of the windows.
        count: told after every image: what is done, how many images, of how many. With a window-by-window encoder on a
            CPU, an image takes seconds.
    """

    def __init__(
        self, scan: Scan, images: NDArray[np.uint8], size: int | None, seed: int, count: Count | None = None
    ) -> None:
        self._scan, self._images, self._seed, self._count = scan, images, seed, count
        self._passes = 0
        self._every = scan.configuration.geometry.grid_size**2
        self._of_each = windows_of_each(scan.configuration.geometry, len(images), size)
        self.count, self.dimension = len(images) * self._of_each, scan.encoder.dimension

    def __iter__(self) -> Iterator[torch.Tensor]:
        random = np.random.default_rng(self._seed)
        self._passes += 1
        for done, image in enumerate(self._images, start=1):
            embeddings = self._scan.embed(image[None]).flatten(0, 2)
            if self._of_each < self._every:
                windows = random.choice(self._every, self._of_each, replace=False)
                embeddings = embeddings[torch.from_numpy(windows).to(self._scan.device)]
            if self._count is not None:
                self._count(f"embedding images, pass {self._passes}", done, len(self._images))
            yield embeddings


def draw_bank(
    scan: Scan, images: NDArray[np.uint8], size: int | None, seed: int, count: Count | None = None
) -> NDArray[np.float32]:
    """The embeddings of ``WindowStream``, (n, D)."""
    return np.concatenate([part.cpu().numpy() for part in WindowStream(scan, images, size, seed, count)])
