"""Evaluation with a real detector: an untrained encoder, which finds a hole in an even surface without learning."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.calibration import OperatingPoint
from models.calibration_set import calibrate
from models.configuration import DetectorConfiguration
from models.densities import KernelDensityConfiguration, create_density
from models.detector import Detector
from models.encoders import DensePatchConfiguration, create_encoder
from models.geometry import Box, ScanGeometry
from models.images import ResizeMode, place_image
from models.prediction import Verdict
from models.region_of_interest import RegionOfInterest
from models.scan import Scan
from training import evaluation
from training.data import DataError, Dataset, Sample
from training.evaluation import evaluate
from training.metrics import RankedPixels, auroc, average_precision, f1_max

SIZE = 64


def surface(seed: int, width: int = SIZE, height: int = SIZE) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(190, 4, (height, width, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


def build_detector(resize: ResizeMode = "squash") -> Detector:
    torch.manual_seed(0)
    geometry = ScanGeometry(image_size=SIZE)
    configuration = DetectorConfiguration(
        geometry=geometry,
        encoder=DensePatchConfiguration(width=4),
        density=KernelDensityConfiguration(mode="exact"),
        resize=resize,
    )
    cpu = torch.device("cpu")
    density = create_density(configuration.density)
    scan = Scan(configuration, create_encoder(configuration.encoder, geometry), density, cpu)

    def scanned(seeds: range) -> NDArray[np.uint8]:
        return np.stack([place_image(surface(seed), SIZE, resize)[0] for seed in seeds])

    whole = Box(x=0, y=0, width=SIZE, height=SIZE)

    bank = scan.embed(scanned(range(4))).reshape(-1, scan.encoder.dimension).numpy()
    density.fit(bank)
    calibration_set = calibrate(scan, geometry, scanned(range(10, 29)), [whole] * 19)
    return Detector("plate", scan, calibration_set, data_fingerprint="0" * 64)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return build_detector()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six good plates, four with a hole, four with a speck that is hard to see; masks of all."""
    root = tmp_path / "plate"
    samples: list[Sample] = []
    for defect, count, radius, value in (("good", 6, 0, 0), ("hole", 4, 7, 0), ("speck", 4, 2, 180)):
        for index in range(count):
            image = surface(100 + len(samples))
            mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
            if radius:
                center = (18 + 6 * index, 40 - 5 * index)
                cv2.circle(mask, center, radius, 255, -1)
                image[mask > 0] = value
            path, mask_path = root / "test" / defect / f"{index:03}.png", root / "ground_truth" / defect
            save(image, path)
            if radius:
                save(mask, mask_path / f"{index:03}_mask.png")
            samples.append(Sample(path, defect, mask_path / f"{index:03}_mask.png" if radius else None))
    return Dataset("plate", root, (), tuple(samples))


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def at(detector: Detector, point: OperatingPoint) -> Detector:
    return Detector("plate", detector.scan, detector.calibration_set, point, data_fingerprint="0" * 64)


def only(dataset: Dataset, *defects: str) -> Dataset:
    return replace(dataset, test=tuple(sample for sample in dataset.test if sample.defect in defects))


def pixels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def test_metrics_are_those_of_the_predictions(detector: Detector, dataset: Dataset, tmp_path: Path) -> None:
    metrics = evaluate(detector, dataset, tmp_path / "out")

    predictions = detector.predict([pixels_of(sample.path) for sample in dataset.test])
    labels = np.array([sample.defect != "good" for sample in dataset.test])
    scores = np.array([prediction.image_score for prediction in predictions])
    masks = np.stack([pixels_of(s.mask) > 0 if s.mask else np.zeros((SIZE, SIZE), dtype=bool) for s in dataset.test])
    pixels = RankedPixels(np.stack([prediction.anomaly_map for prediction in predictions]), masks)
    threshold = detector.operating_point.image_threshold

    assert metrics["image_auroc"] == pytest.approx(auroc(labels, scores), abs=1e-6)
    assert metrics["image_ap"] == pytest.approx(average_precision(labels, scores), abs=1e-6)
    assert metrics["image_f1_max"] == pytest.approx(f1_max(labels, scores), abs=1e-6)
    assert metrics["pixel_auroc"] == pytest.approx(pixels.auroc(), abs=1e-5)
    assert metrics["pixel_ap"] == pytest.approx(pixels.average_precision(), abs=1e-5)
    assert metrics["aupro_30"] == pytest.approx(pixels.aupro(0.3), abs=1e-5)
    assert metrics["aupro_05"] == pytest.approx(pixels.aupro(0.05), abs=1e-5)
    assert metrics["false_reject_rate"] == np.mean(scores[~labels] > threshold)
    assert metrics["escape_rate"] == np.mean(scores[labels] <= threshold)
    low, high = metrics["image_auroc_interval"]
    assert low <= metrics["image_auroc"] <= high
    assert metrics["map_resolution"] == [SIZE, SIZE]
    assert metrics["unavailable"] == {}
    assert metrics["counts"]["good"] == 6
    assert metrics["counts"]["defective"] == 8

    hole = metrics["per_defect"]["hole"]
    chosen = np.array([sample.defect in ("good", "hole") for sample in dataset.test])
    assert list(metrics["per_defect"]) == ["hole", "speck"]
    assert hole["count"] == 4
    assert hole["image_auroc"] == pytest.approx(auroc(labels[chosen], scores[chosen]), abs=1e-6)
    expected = RankedPixels(np.stack([p.anomaly_map for p in predictions])[chosen], masks[chosen]).auroc()
    assert hole["pixel_auroc"] == pytest.approx(expected, abs=1e-5)
    assert hole["escape_rate"] == 0.0
    assert metrics["per_defect"]["speck"]["escape_rate"] == 2 * metrics["escape_rate"]


@pytest.mark.parametrize("name", [b"gr\xfcn", b"$_^{$", "\u00fcber und dr\u00fcber".encode(), b"a,b\n"])
def test_a_file_may_have_any_name(detector: Detector, dataset: Dataset, tmp_path: Path, name: bytes) -> None:
    """Bytes that are no UTF-8, as of a disk written in another encoding, and what matplotlib takes for a formula."""
    renamed = []
    for sample in only(dataset, "good", "hole").test:
        path = sample.path.with_name(f"{os.fsdecode(name)}{sample.path.name}")
        renamed.append(replace(sample, path=sample.path.rename(path)))
    evaluate(detector, replace(dataset, test=tuple(renamed)), tmp_path / "out")
    assert (tmp_path / "out" / "images.csv").read_bytes().count(b"/" + name) == len(renamed)
    assert (tmp_path / "out" / "sheet.png").exists()


def test_the_operation_decides(detector: Detector, dataset: Dataset, tmp_path: Path) -> None:
    """Its thresholds, and its region: of the left half, in which half of the holes lie."""
    before = evaluate(detector, dataset, tmp_path / "before")
    left = np.zeros((SIZE, SIZE), dtype=bool)
    left[:, : SIZE // 2] = True
    point = detector.operating_point.model_copy(
        update={"image_threshold": detector.operating_point.image_threshold - 10}
    )
    strict = detector.own_operation.model_copy(update={"number": 3, "operating_point": point})
    metrics = evaluate(detector, dataset, tmp_path / "strict", operation=strict)
    assert (before["operation"], metrics["operation"]) == (0, 3)
    assert metrics["operating_point"]["image_threshold"] == point.image_threshold
    assert before["false_reject_rate"] < metrics["false_reject_rate"] == 1
    assert metrics["image_auroc"] == before["image_auroc"]

    region = strict.model_copy(update={"region_of_interest": RegionOfInterest.of_mask(left)})
    halved = evaluate(detector, dataset, tmp_path / "halved", operation=region)
    predictions = detector.predict([pixels_of(sample.path) for sample in dataset.test], region)
    masks = np.stack([pixels_of(s.mask) > 0 if s.mask else np.zeros((SIZE, SIZE), dtype=bool) for s in dataset.test])
    maps = np.stack([prediction.anomaly_map for prediction in predictions])
    shown = np.broadcast_to(left, maps.shape).copy()
    expected = RankedPixels(maps, masks, shown).auroc()
    assert halved["pixel_auroc"] == pytest.approx(expected, abs=1e-5)
    assert halved["pixel_auroc"] != before["pixel_auroc"]

    nowhere = np.zeros((SIZE, SIZE), dtype=bool)
    nowhere[-8:, -8:] = True  # no hole lies there
    corner = strict.model_copy(update={"region_of_interest": RegionOfInterest.of_mask(nowhere)})
    assert evaluate(detector, dataset, tmp_path / "corner", operation=corner)["pixel_auroc"] is None


def test_files_are_written(detector: Detector, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    metrics = evaluate(detector, dataset, out)
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert {path.name for path in out.iterdir()} == {"metrics.json", "images.csv", "roc.png", "scores.png", "sheet.png"}
    for name in ("roc.png", "scores.png", "sheet.png"):
        assert pixels_of(out / name).std() > 1

    rows = list(csv.DictReader((out / "images.csv").read_text().splitlines()))
    predictions = detector.predict([pixels_of(sample.path) for sample in dataset.test])
    assert [row["path"] for row in rows] == [str(s.path.relative_to(dataset.root)) for s in dataset.test]
    for row, sample, prediction in zip(rows, dataset.test, predictions, strict=True):
        assert row["defect"] == sample.defect
        assert float(row["image_score"]) == pytest.approx(prediction.image_score, abs=1e-6)
        assert float(row["p_value"]) == prediction.p_value
        assert row["verdict"] == prediction.verdict.value
        assert int(row["regions"]) == len(prediction.regions)


def test_review_is_neither_a_false_reject_nor_an_escape(detector: Detector, dataset: Dataset, tmp_path: Path) -> None:
    scores = np.array([p.image_score for p in detector.predict([pixels_of(s.path) for s in dataset.test])])
    good, defective = scores[:6], scores[6:]
    threshold = float(np.median(good))  # rejects half of the good ones
    point = OperatingPoint(image_threshold=threshold, pixel_threshold=threshold, false_reject_rate=0.5)
    plain = evaluate(at(detector, point), dataset, tmp_path / "plain")
    assert plain["false_reject_rate"] == 0.5
    assert plain["review_rate"] == 0

    band = (float(good.min()) - 1, float(good.max()))
    banded = point.model_copy(update={"review_band": band})
    metrics = evaluate(at(detector, banded), dataset, tmp_path / "band")
    assert metrics["false_reject_rate"] == 0
    assert metrics["escape_rate"] == 0
    assert metrics["review_rate"] == np.mean(scores <= band[1])
    assert metrics["counts"]["review"] == 6 + np.sum(defective <= band[1])
    assert metrics["operating_point"]["review_band"] == list(band)


@pytest.mark.parametrize(
    ("defects", "missing", "rate_missing"),
    [(("good",), "defective", "escape_rate"), (("hole", "speck"), "good", "false_reject_rate")],
)
def test_one_kind_of_images_alone_leaves_metrics_out_with_the_reason(
    detector: Detector, dataset: Dataset, tmp_path: Path, defects: tuple[str, ...], missing: str, rate_missing: str
) -> None:
    evaluate(detector, dataset, tmp_path)
    metrics = evaluate(detector, only(dataset, *defects), tmp_path)
    for name in ("image_auroc", "image_ap", "image_f1_max", "image_auroc_interval", rate_missing):
        assert metrics[name] is None
        assert metrics["unavailable"][name] == f"there are no {missing} test images"
    for name in ("pixel_auroc", "pixel_ap", "aupro_30", "aupro_05"):
        assert (metrics[name] is None) == (missing == "defective") == (name in metrics["unavailable"])
    assert json.loads((tmp_path / "metrics.json").read_text())["image_auroc"] is None
    assert not (tmp_path / "roc.png").exists()  # the earlier evaluation's would show other images
    assert (tmp_path / "sheet.png").exists()


def test_defective_images_without_ground_truth_stay_out_of_pixel_metrics(
    detector: Detector, dataset: Dataset, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.png"
    save(np.zeros((SIZE, SIZE), dtype=np.uint8), blank)
    *known, one, another = dataset.test
    test = (*known, replace(one, mask=None), replace(another, mask=blank))
    metrics = evaluate(detector, replace(dataset, test=test), tmp_path / "out")
    reference = evaluate(detector, replace(dataset, test=tuple(known)), tmp_path / "reference")
    assert metrics["counts"]["defective_without_ground_truth"] == 2
    assert metrics["pixel_auroc"] == pytest.approx(reference["pixel_auroc"], abs=1e-5)
    speck, reference_speck = metrics["per_defect"]["speck"], reference["per_defect"]["speck"]
    assert (speck["count"], reference_speck["count"]) == (4, 2)
    assert speck["pixel_auroc"] == pytest.approx(reference_speck["pixel_auroc"], abs=1e-5)


def test_padding_of_a_letterbox_is_not_counted(dataset: Dataset, tmp_path: Path) -> None:
    detector = build_detector("letterbox")
    samples = []
    for index, sample in enumerate(dataset.test[:8]):  # good ones and holes, cut to wide images
        image = pixels_of(sample.path)[20:52]
        mask = pixels_of(sample.mask)[20:52] if sample.mask else None
        save(image, tmp_path / "wide" / f"{index}.png")
        if mask is not None:
            save(mask, tmp_path / "masks" / f"{index}.png")
        mask_path = tmp_path / "masks" / f"{index}.png" if sample.mask else None
        samples.append(Sample(tmp_path / "wide" / f"{index}.png", sample.defect, mask_path))
    metrics = evaluate(detector, replace(dataset, test=tuple(samples)), tmp_path / "out")

    predictions = detector.predict([pixels_of(sample.path) for sample in samples])
    maps = np.stack([prediction.anomaly_map[16:48] for prediction in predictions])
    masks = np.stack([pixels_of(s.mask) > 0 if s.mask else np.zeros((32, SIZE), dtype=bool) for s in samples])
    assert metrics["pixel_auroc"] == pytest.approx(RankedPixels(maps, masks).auroc(), abs=1e-5)


def test_images_of_any_size_are_taken_with_their_masks(detector: Detector, dataset: Dataset, tmp_path: Path) -> None:
    sample = next(s for s in dataset.test if s.defect == "hole")
    assert sample.mask is not None
    for path in (sample.path, sample.mask):
        pixels = pixels_of(path)
        save(cv2.resize(pixels, (200, 130), interpolation=cv2.INTER_NEAREST).astype(np.uint8), path)  # squashed back
    metrics = evaluate(detector, only(dataset, "good", "hole"), tmp_path / "out")
    assert metrics["counts"]["defective"] == 4
    assert metrics["per_defect"]["hole"]["pixel_auroc"] > 0.9


def test_a_dataset_without_test_images_is_refused(detector: Detector, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no test images.*test/good.*ground_truth"):
        evaluate(detector, replace(dataset, test=()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_broken_files_stop_or_are_counted(detector: Detector, dataset: Dataset, tmp_path: Path) -> None:
    first, hole = dataset.test[0], dataset.test[6]
    first.path.write_bytes(b"not an image")
    assert hole.mask is not None
    save(np.zeros((SIZE, SIZE + 1), dtype=np.uint8), hole.mask)

    with pytest.raises(DataError, match=r"000\.png.*--skip-broken"):
        evaluate(detector, dataset, tmp_path / "out")
    with pytest.raises(DataError, match="65x64 pixels but its image"):
        evaluate(detector, only(dataset, "hole"), tmp_path / "out")

    foreign = dataset.root / "test" / "hole" / "notes.txt"
    found = replace(dataset, skipped=((foreign, "not an image"), (dataset.root / "train" / "notes.txt", "likewise")))
    metrics = evaluate(detector, found, tmp_path / "out", skip_broken=True)
    assert [entry["path"] for entry in metrics["skipped"]] == [str(p) for p in (foreign, first.path, hole.path)]
    assert metrics["counts"]["skipped"] == 3
    assert metrics["counts"]["good"] == 5
    assert metrics["counts"]["defective"] == 7

    with pytest.raises(DataError, match="all test images are broken"):
        evaluate(detector, replace(dataset, test=(first,)), tmp_path / "none", skip_broken=True)


def test_progress_counts_every_image_up_to_all(
    detector: Detector, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 5)
    calls: list[tuple[str, int, int]] = []
    evaluate(detector, dataset, tmp_path, progress=lambda *call: calls.append(call))
    assert calls == [("scoring", 5, 14), ("scoring", 10, 14), ("scoring", 14, 14)]


def test_a_crash_while_writing_leaves_the_earlier_evaluation(
    detector: Detector, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(detector, dataset, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full_disk(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(evaluation, "_write_csv", full_disk)
    with pytest.raises(OSError, match="no space"):
        evaluate(detector, only(dataset, "good", "speck"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_the_sheet_shows_the_telling_images_each_once(detector: Detector, dataset: Dataset) -> None:
    results = evaluation._score(detector, dataset, detector.own_operation, False, None)
    rows = dict(evaluation._tiles(detector, results))
    good, high, low = rows.values()
    assert [len(tiles) for tiles in (good, high, low)] == [4, 4, 4]
    defective = np.sort(results.image_scores[results.defective])
    by_map = {results.maps[index].tobytes(): score for index, score in enumerate(results.image_scores)}
    assert [by_map[tile.anomaly_map.tobytes()] for tile in high] == defective[::-1][:4].tolist()
    assert [by_map[tile.anomaly_map.tobytes()] for tile in low] == defective[:4].tolist()
    assert all(Verdict.DEFECTIVE.value in tile.title for tile in high)
    assert all(tile.mask.any() for tile in high + low)
    assert not any(tile.mask.any() for tile in good)
