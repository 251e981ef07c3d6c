"""``Detector``: a scan and its calibration composed; one image in, scores, verdict and regions out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.artifact import ArtifactError, Manifest, verify, write_manifest
from models.calibration import Calibration, OperatingPoint
from models.calibration_set import CalibrationSet
from models.configuration import configuration_of
from models.densities import create_density
from models.device import resolve_device
from models.encoders import create_encoder
from models.geometry import ScanGeometry
from models.heatmap import peak_window
from models.images import Placement, place_image
from models.inference import InferenceError, InferencePlan
from models.operation import Operation
from models.prediction import Prediction, Verdict
from models.region_of_interest import RegionOfInterest
from models.regions import find_regions, peak_region
from models.scan import Ensemble, Scan, combine
from models.validity import VALIDITY_FILE, Validity

REGIONS_KEPT = 8  # of interest, whose calibrations a detector keeps; one is in force, others are tried
IMAGES_PER_SCAN = 8  # that a look takes: bounds the memory of a prediction, however many images are asked for
ENCODER_FILE = "encoder.safetensors"


def member_folder(folder: Path, number: int) -> Path:
    """Where member ``number`` of an ensemble is kept: the first in the folder itself, as if it were alone."""
    return folder / f"member_{number}" if number else folder


class Detector:
    """A category's trained detector.

    Args:
        category: the product it inspects.
        scan: images to maps.
        calibration_set: good images that touched nothing else, and their scores.
        operating_point: where it decides; the calibration's default if None.
        validity: tells images that do not show the product; None takes every image for one that does.
        data_fingerprint: SHA-256 of the training images.
        training: how it was made, for the record.
    """

    def __init__(
        self,
        category: str,
        scan: Scan | Ensemble,
        calibration_set: CalibrationSet,
        operating_point: OperatingPoint | None = None,
        *,
        validity: Validity | None = None,
        data_fingerprint: str,
        training: dict[str, Any] | None = None,
    ) -> None:
        self.category = category
        self.scan = scan
        self.calibration_set = calibration_set
        self.calibration = calibration_set.scores
        self.operating_point = operating_point or self.calibration.operating_point()
        self.validity = validity
        self.data_fingerprint = data_fingerprint
        self.training = training or {}
        self.manifest: Manifest | None = None
        self._created = datetime.now(UTC)
        self._calibrations: dict[RegionOfInterest | None, Calibration] = {None: self.calibration}

    @property
    def version(self) -> int | None:
        """The published version this detector was loaded from; None before."""
        return self.manifest.version if self.manifest else None

    @property
    def geometry(self) -> ScanGeometry:
        """The scan's geometry."""
        return self.scan.configuration.geometry

    @property
    def own_operation(self) -> Operation:
        """What it decides by where nothing else was recorded: operation 0."""
        created = self.manifest.created if self.manifest else self._created
        return Operation(number=0, operating_point=self.operating_point, author="training", created=created)

    def calibration_for(self, region: RegionOfInterest | None) -> Calibration:
        """The calibration where only ``region`` counts; made once, which takes milliseconds an image."""
        if (known := self._calibrations.get(region)) is not None:
            return known
        assert region is not None
        made = self.calibration_set.within(region, self.geometry, self.scan.configuration.sigma)
        if len(self._calibrations) > REGIONS_KEPT:
            self._calibrations = {None: self.calibration}
        self._calibrations[region] = made
        return made

    def operating_point_for(self, rate: float | None, region: RegionOfInterest | None) -> OperatingPoint:
        """Thresholds for a false-reject rate where only ``region`` counts.

        Raises:
            ValueError: as ``Calibration.operating_point``.
        """
        return self.calibration_for(region).operating_point(rate)

    def rescanned(
        self,
        scan: Scan | Ensemble,
        calibration_set: CalibrationSet,
        before: OperatingPoint | None = None,
        *,
        data_fingerprint: str | None = None,
        training: dict[str, Any] | None = None,
    ) -> Self:
        """A detector of another scan, at the same false-reject rate, not published yet.

        Its test for images of something else stays; a review band is dropped, for it is in other scores.

        Args:
            calibration_set: by that scan.
            before: what is in force for this one, whose false-reject rate and invalidity threshold go on; its own
                operating point if None.
            data_fingerprint, training: its own, where they differ.
        """
        before = before or self.operating_point
        point = calibration_set.scores.operating_point(before.false_reject_rate)
        return type(self)(
            self.category,
            scan,
            calibration_set,
            point.model_copy(update={"invalidity_threshold": before.invalidity_threshold}),
            validity=self.validity,
            data_fingerprint=data_fingerprint or self.data_fingerprint,
            training=training or self.training,
        )

    def predict(self, images: Sequence[NDArray[np.uint8]], operation: Operation | None = None) -> list[Prediction]:
        """Score images.

        Args:
            images: each (H, W, 3) uint8 RGB, of any size, as ``decode_image`` gives it.
            operation: what decides; ``own_operation`` if None.

        Returns:
            One prediction an image, in their order.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(images), IMAGES_PER_SCAN):
            placed = [self.place(image) for image in images[start : start + IMAGES_PER_SCAN]]
            seen = self.scan.look(np.stack([pixels for pixels, _ in placed]))
            for (_, placement), *of_image in zip(placed, *seen, strict=True):
                score_map, anomaly_map, summary, errors = of_image
                predictions.append(self.judge(score_map, anomaly_map, placement, operation, summary, errors))
        return predictions

    def place(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement]:
        """The first third of ``predict``, for any thread: an image as ``scan.look`` takes it, (S, S, 3)."""
        configuration = self.scan.configuration
        return place_image(image, configuration.geometry.image_size, configuration.resize)

    def judge(
        self,
        score_map: NDArray[np.float32],
        anomaly_map: NDArray[np.float32],
        placement: Placement,
        operation: Operation | None = None,
        summary: NDArray[np.float32] | None = None,
        score_errors: NDArray[np.float32] | None = None,
    ) -> Prediction:
        """The last third of ``predict``, for any thread: what was seen in one image that ``place`` placed, and means.

        Args:
            summary: without it the image is taken for one of the product.
            score_errors: of the score map; None for none.
        """
        operation = operation or self.own_operation
        region, point = operation.region_of_interest, operation.operating_point
        window = peak_window(score_map, self.geometry, placement.content, region)
        score = float(score_map[window])
        invalidity = self.validity.invalidity(summary) if self.validity and summary is not None else None
        verdict = point.verdict(score, invalidity)
        regions = find_regions(anomaly_map, point.pixel_threshold, placement, region)
        if not regions and verdict is not Verdict.GOOD:
            regions = (peak_region(window, anomaly_map, self.geometry, placement),)
        return Prediction(
            score_map=score_map,
            image_score=score,
            image_score_error=0.0 if score_errors is None else float(score_errors[window]),
            anomaly_map=anomaly_map,
            placement=placement,
            p_value=self.calibration_for(region).p_value(score),
            verdict=verdict,
            regions=regions,
            invalidity=invalidity,
            summary=summary,
        )

    def description(self) -> dict[str, Any]:
        """The facts of this detector, ready for JSON."""
        rate = self.operating_point.false_reject_rate
        return {
            "category": self.category,
            "version": self.version,
            "created": self.manifest.created.isoformat() if self.manifest else None,
            "configuration": self.scan.configuration.model_dump(mode="json"),
            "members": [member.density.facts() for member in self.scan.members],
            "calibration_images": len(self.calibration),
            "operating_point": self.operating_point.model_dump(mode="json"),
            "false_reject_rate_interval": self.calibration.rate_interval(rate),
            "validity": self.validity.facts() if self.validity else None,
            "device": str(self.scan.device),
            "data_fingerprint": self.data_fingerprint,
            "training": self.training,
        }

    def save(self, folder: Path, version: int | None = None) -> None:
        """Write the artifact into ``folder``, which exists and is empty."""
        for number, member in enumerate(self.scan.members):
            place = member_folder(folder, number)
            place.mkdir(exist_ok=True)
            state = {name: tensor.cpu().contiguous() for name, tensor in member.encoder.state_dict().items()}
            save_file(state, place / ENCODER_FILE)
            member.density.save(place)
        self.calibration_set.save(folder)
        if self.validity is not None:
            self.validity.save(folder)
        write_manifest(
            folder,
            category=self.category,
            version=version,
            configuration={
                "detector": self.scan.configuration.model_dump(mode="json"),
                "operating_point": self.operating_point.model_dump(mode="json"),
                "training": self.training,
            },
            geometry=self.geometry,
            data_fingerprint=self.data_fingerprint,
        )

    @classmethod
    def load(cls, folder: Path, device: str = "auto", plan: InferencePlan | None = None) -> Self:
        """The detector that ``save`` wrote, every file checked against its SHA-256.

        Args:
            plan: another than its own, to compare them: its thresholds are not for that one's scores.

        Raises:
            ArtifactError: if a file is missing, altered, or not what this build reads, or its plan does not run here.
            DeviceError: if the device is not there.
        """
        return cls.restore(folder, verify(folder), device, plan)

    @classmethod
    def restore(cls, folder: Path, manifest: Manifest, device: str = "auto", plan: InferencePlan | None = None) -> Self:
        """As ``load``, of a folder that ``verify`` has just given the manifest of."""
        target = resolve_device(device)
        try:
            configuration = configuration_of(manifest)
            if plan is not None:
                configuration = configuration.model_copy(update={"inference": plan})
            operating_point = OperatingPoint.model_validate(manifest.configuration["operating_point"])
            members = []
            for number in range(sum(name.endswith(ENCODER_FILE) for name in manifest.files) or 1):
                place = member_folder(folder, number)
                encoder = create_encoder(configuration.encoder, configuration.geometry)
                encoder.load_state_dict(load_file(place / ENCODER_FILE))
                density = create_density(configuration.density, target).restore(place)
                members.append(Scan(configuration, encoder, density, target))
            calibration_set = CalibrationSet.load(folder)
            validity = Validity.load(folder) if VALIDITY_FILE in manifest.files else None
        except InferenceError as error:
            raise ArtifactError(f"{folder} cannot run here: {error}") from error
        except (LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{folder}: its configuration or arrays are not what this build reads; use the Plumbline that wrote "
                f"it, or train the category again ({error})"
            ) from error
        training = manifest.configuration.get("training")
        detector = cls(
            manifest.category,
            combine(members),
            calibration_set,
            operating_point,
            validity=validity,
            data_fingerprint=manifest.data_fingerprint,
            training=training if isinstance(training, dict) else None,
        )
        detector.manifest = manifest
        return detector
