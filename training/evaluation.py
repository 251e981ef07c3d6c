"""Scores a detector on the test images of its category: metrics.json, a CSV line per image, and plots."""

from __future__ import annotations

import csv
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.artifact import LIBRARIES
from models.detector import Detector
from models.images import ImageError, Placement, ResizeMode, place_image, read_image
from models.operation import Operation
from models.prediction import Prediction, Verdict
from models.region_of_interest import RegionOfInterest
from training.data import GOOD, DataError, Dataset, Sample, load_mask
from training.metrics import RankedPixels, auroc, auroc_interval, average_precision, f1_max
from training.plots import Tile, roc_plot, score_histogram, sheet

METRICS, IMAGES, ROC, HISTOGRAM, SHEET = "metrics.json", "images.csv", "roc.png", "scores.png", "sheet.png"
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "aupro_30", "aupro_05")
BATCH = 16  # images read and handed to the detector at a time
SHEET_COLUMNS = 4
LONGEST_NAME = 34  # characters that fit above a tile
DOTS_PER_INCH = 110

Progress = Callable[[str, int, int], None]
Bools = NDArray[np.bool_]


def evaluate(
    detector: Detector,
    dataset: Dataset,
    out: Path,
    *,
    operation: Operation | None = None,
    skip_broken: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the test images and write metrics.json, images.csv, roc.png, scores.png and sheet.png into ``out``.

    Pixel metrics are taken at the anomaly map's resolution, over the pixels that show the image (not the padding of a
    letter-box) and lie in the region of interest, if there is one; defective images without ground truth stay out of
    them. A metric that these images do not define is None, with the reason under "unavailable". A false reject is a
    good image called defective, an escape a defective one called good; an image sent to review, or taken for none of
    the product, is neither, and is counted in "review_rate" or "invalid_rate".

    Args:
        detector: which.
        dataset: its test samples are scored; the rest is not looked at.
        out: folder for the files, made if missing; those of an earlier evaluation are replaced once all are ready.
        operation: what decides; the detector's own if None.
        skip_broken: leave out images and masks that cannot be read, and list them, instead of stopping.
        progress: called with what is done, how many, of how many.

    Returns:
        The content of metrics.json.

    Raises:
        DataError: if there is nothing to score, a mask does not fit its image, or a file is broken.
    """
    if not dataset.test:
        raise DataError(
            f"{dataset.category}: {dataset.root} holds no test images, so there is nothing to evaluate; expected are "
            f"good ones in test/{GOOD}, defective ones in test/<defect>, and their masks in "
            "ground_truth/<defect>/<name>_mask.png"
        )
    operation = operation or detector.own_operation
    results = _score(detector, dataset, operation, skip_broken, progress)
    content = _metrics(detector, results)
    figures = _figures(detector, results, content)
    _write(out, content, results, dataset.root, figures)
    return content


def shown_pixels(placements: Sequence[Placement]) -> Bools:
    """The pixels of the detector's input that show each image, not padding: (N, S, S)."""
    size = placements[0].size
    shown = np.zeros((len(placements), size, size), dtype=bool)
    for pixels, placement in zip(shown, placements, strict=True):
        placement.crop(pixels)[...] = True
    return shown


@dataclass(frozen=True)
class _Results:
    """N scored samples; S is the side of the detector's input."""

    samples: list[Sample]
    image_scores: NDArray[np.float64]  # (N,)
    p_values: list[float]
    verdicts: list[Verdict]
    region_counts: list[int]
    maps: NDArray[np.float32]  # (N, S, S)
    masks: Bools  # (N, S, S)
    counted: Bools | None  # (N, S, S), False in the padding and outside the region of interest; None without either
    skipped: list[tuple[Path, str]]
    seconds: float  # spent in the detector
    operation: Operation  # that decided

    @property
    def defective(self) -> Bools:
        return np.array([sample.defect != GOOD for sample in self.samples])

    @property
    def located(self) -> Bools:
        """Where the pixels' truth is known: good images, and defective ones with a mask that shows something."""
        return ~self.defective | self.masks.any(axis=(1, 2))


def _score(
    detector: Detector, dataset: Dataset, operation: Operation, skip_broken: bool, progress: Progress | None
) -> _Results:
    samples: list[Sample] = []
    predictions: list[Prediction] = []
    masks: list[Bools] = []
    skipped = [(path, reason) for path, reason in dataset.skipped if path.is_relative_to(dataset.root / "test")]
    seconds = 0.0
    for start in range(0, len(dataset.test), BATCH):
        images: list[NDArray[np.uint8]] = []
        for sample in dataset.test[start : start + BATCH]:
            try:
                image, mask = _read(sample, detector)
            except (ImageError, DataError) as error:
                if not skip_broken:
                    raise DataError(f"{error}. Mend or remove the file, or skip such files (--skip-broken)") from error
                skipped.append((sample.path, str(error)))
                continue
            images.append(image)
            masks.append(mask)
            samples.append(sample)
        began = time.perf_counter()
        predictions += detector.predict(images, operation)
        seconds += time.perf_counter() - began
        if progress is not None:
            progress("scoring", min(start + BATCH, len(dataset.test)), len(dataset.test))
    if not samples:
        raise DataError(f"{dataset.category}: all test images are broken, the first: {skipped[0][1]}")
    return _Results(
        samples=samples,
        image_scores=np.array([prediction.image_score for prediction in predictions], dtype=np.float64),
        p_values=[prediction.p_value for prediction in predictions],
        verdicts=[prediction.verdict for prediction in predictions],
        region_counts=[len(prediction.regions) for prediction in predictions],
        maps=np.stack([prediction.anomaly_map for prediction in predictions]),
        masks=np.stack(masks),
        counted=_counted(detector, [prediction.placement for prediction in predictions], operation.region_of_interest),
        skipped=skipped,
        seconds=seconds,
        operation=operation,
    )


def _counted(detector: Detector, placements: Sequence[Placement], region: RegionOfInterest | None) -> Bools | None:
    """Which pixels of the detector's input count, (N, S, S); None where all of them do."""
    if region is None:
        return shown_pixels(placements) if _resize_mode(detector) == "letterbox" else None
    counted = shown_pixels(placements)
    for pixels, placement in zip(counted, placements, strict=True):
        inside = placement.crop(pixels)
        inside[...] = region.over(*inside.shape)
    return counted


def _resize_mode(detector: Detector) -> ResizeMode:
    return detector.scan.configuration.resize


def _read(sample: Sample, detector: Detector) -> tuple[NDArray[np.uint8], Bools]:
    """The image as it is, and its ground truth in the detector's input."""
    image = read_image(sample.path)
    height, width = image.shape[:2]
    size, mode = detector.geometry.image_size, _resize_mode(detector)
    return image, load_mask(sample, Placement(original_width=width, original_height=height, size=size, mode=mode))


def _metrics(detector: Detector, results: _Results) -> dict[str, Any]:
    defective, verdicts = results.defective, np.array(results.verdicts)
    good = ~defective
    values = {
        **_image_metrics(results),
        **_pixel_metrics(_rank(results, results.located)),
        "false_reject_rate": _rate(verdicts[good] == Verdict.DEFECTIVE),
        "escape_rate": _rate(verdicts[defective] == Verdict.GOOD),
        "review_rate": _rate(verdicts == Verdict.REVIEW),
        "invalid_rate": _rate(verdicts == Verdict.INVALID),
    }
    absent_kind = "good" if defective.all() else "defective"
    return {
        "category": detector.category,
        "version": detector.version,
        **values,
        "unavailable": {
            name: "the images with known ground truth do not hold both defective and normal pixels"
            if name in PIXEL_METRICS
            else f"there are no {absent_kind} test images"
            for name, value in values.items()
            if value is None
        },
        "per_defect": {
            name: _of_defect(name, results, verdicts)
            for name in sorted({sample.defect for sample in results.samples} - {GOOD})
        },
        "operation": results.operation.number,
        "operating_point": results.operation.operating_point.model_dump(mode="json"),
        "counts": {
            "good": int(good.sum()),
            "defective": int(defective.sum()),
            "defective_without_ground_truth": int((~results.located).sum()),
            "false_rejects": int((verdicts[good] == Verdict.DEFECTIVE).sum()),
            "escapes": int((verdicts[defective] == Verdict.GOOD).sum()),
            "review": int((verdicts == Verdict.REVIEW).sum()),
            "invalid": int((verdicts == Verdict.INVALID).sum()),
            "skipped": len(results.skipped),
        },
        "skipped": [{"path": path.as_posix(), "reason": reason} for path, reason in results.skipped],
        "map_resolution": list(results.maps.shape[1:]),
        "seconds_per_image": results.seconds / len(results.samples),
        "evaluated": datetime.now(UTC).isoformat(timespec="seconds"),
        "detector": detector.description(),
        "libraries": _libraries(),
    }


def _image_metrics(results: _Results) -> dict[str, Any]:
    labels, scores = results.defective, results.image_scores
    if labels.all() or not labels.any():
        return dict.fromkeys(("image_auroc", "image_auroc_interval", "image_ap", "image_f1_max"))
    return {
        "image_auroc": auroc(labels, scores),
        "image_auroc_interval": list(auroc_interval(labels, scores)),
        "image_ap": average_precision(labels, scores),
        "image_f1_max": f1_max(labels, scores),
    }


def _pixel_metrics(pixels: RankedPixels | None) -> dict[str, float | None]:
    if pixels is None:
        return dict.fromkeys(PIXEL_METRICS)
    values = (pixels.auroc(), pixels.average_precision(), pixels.aupro(0.3), pixels.aupro(0.05))
    return dict(zip(PIXEL_METRICS, values, strict=True))


def _rank(results: _Results, chosen: Bools) -> RankedPixels | None:
    """The pixels of the chosen images, where they are of both kinds."""
    counted = None if results.counted is None else results.counted[chosen]
    maps, masks = results.maps[chosen], results.masks[chosen]
    normal, defective = (~masks, masks) if counted is None else (~masks & counted, masks & counted)
    return RankedPixels(maps, masks, counted) if defective.any() and normal.any() else None


def _of_defect(name: str, results: _Results, verdicts: NDArray[Any]) -> dict[str, Any]:
    """The metrics of one kind of defect, against all good images; None where there are none to compare with."""
    this = np.array([sample.defect == name for sample in results.samples])
    good = ~results.defective
    chosen = this | good
    pixels = _rank(results, chosen & results.located)
    return {
        "count": int(this.sum()),
        "image_auroc": auroc(this[chosen], results.image_scores[chosen]) if good.any() else None,
        "pixel_auroc": None if pixels is None else pixels.auroc(),
        "escape_rate": _rate(verdicts[this] == Verdict.GOOD),
    }


def _rate(hits: Bools) -> float | None:
    return float(hits.mean()) if hits.size else None


def _libraries() -> dict[str, str]:
    """What could move a figure: the versions of Python and of the libraries that compute."""
    names = dict.fromkeys((*LIBRARIES, "scikit-learn"))
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in names}
    versions = {name: distribution.version for name, distribution in found.items() if distribution is not None}
    return {"python": platform.python_version(), **versions}


def _figures(detector: Detector, results: _Results, content: dict[str, Any]) -> dict[str, Figure]:
    labels, scores, point = results.defective, results.image_scores, results.operation.operating_point
    name = detector.category if detector.version is None else f"{detector.category}, version {detector.version}"
    figures = {
        HISTOGRAM: score_histogram(labels, scores, point, name),
        SHEET: sheet(_tiles(detector, results), point.pixel_threshold, name),
    }
    if content["image_auroc"] is not None:
        figures[ROC] = roc_plot(labels, scores, point, f"{name}: image AUROC {content['image_auroc']:.3f}")
    return figures


def _tiles(detector: Detector, results: _Results) -> list[tuple[str, list[Tile]]]:
    """The telling images: the good ones nearest to a reject, the clearest defects, and those nearest to an escape."""
    falling = np.argsort(-results.image_scores, kind="stable")
    good = [int(index) for index in falling if not results.defective[index]]
    defective = [int(index) for index in falling if results.defective[index]]
    lowest = defective[SHEET_COLUMNS:][::-1][:SHEET_COLUMNS]  # none of them twice where there are few

    def tile(index: int) -> Tile:
        sample = results.samples[index]
        image, _ = place_image(read_image(sample.path), detector.geometry.image_size, _resize_mode(detector))
        name = f"{sample.defect} {sample.path.stem}"
        title = f"{name[:LONGEST_NAME]}\n{results.image_scores[index]:.4g} {results.verdicts[index].value}"
        return Tile(image, results.masks[index], results.maps[index], title)

    rows = {
        "good, highest scores": good[:SHEET_COLUMNS],
        "defective, highest scores": defective[:SHEET_COLUMNS],
        "defective, lowest scores": lowest,
    }
    return [(heading, [tile(index) for index in chosen]) for heading, chosen in rows.items()]


def _write(out: Path, content: dict[str, Any], results: _Results, root: Path, figures: dict[str, Figure]) -> None:
    """All files beside the target first, then one rename each, metrics.json last: a crash leaves no half of one."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=out) as folder:
        staging = Path(folder)
        for name, figure in figures.items():
            figure.savefig(staging / name, dpi=DOTS_PER_INCH)
        _write_csv(staging / IMAGES, results, root)
        (staging / METRICS).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for name in (ROC, HISTOGRAM, SHEET, IMAGES, METRICS):
            if (staging / name).exists():
                (staging / name).replace(out / name)
            else:
                (out / name).unlink(missing_ok=True)  # an earlier evaluation's, of other images


def _write_csv(path: Path, results: _Results, root: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # file names are any bytes
        writer = csv.writer(file)
        writer.writerow(["path", "defect", "image_score", "p_value", "verdict", "regions"])
        rows = zip(
            results.samples,
            results.image_scores.tolist(),
            results.p_values,
            results.verdicts,
            results.region_counts,
            strict=True,
        )
        for sample, score, p_value, verdict, regions in rows:
            name = sample.path.relative_to(root) if sample.path.is_relative_to(root) else sample.path
            writer.writerow([name.as_posix(), sample.defect, repr(score), repr(p_value), verdict.value, regions])
