"""What a fit hands from stage to stage: the windows that a density learns from, and the thresholds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.calibration_set import calibrate
from models.densities import (
    GaussianDensityConfiguration,
    KernelDensityConfiguration,
    create_density,
)
from models.densities.reduction import ReductionConfiguration
from models.detector import Detector
from models.encoders import create_encoder
from models.images import ResizeMode, place_image, read_image
from models.scan import Scan
from models.store import ModelStore
from tests.training.fit_support import (
    CPU,
    DETECTOR,
    GEOMETRY,
    HELD_OUT,
    IMAGES,
    make_configuration,
    pixels,
    run_fit,
    write,
    write_parts,
)
from training.fit import (
    WindowStream,
    bank_size_for,
    draw_bank,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A plain folder of good images."""
    return write_parts(tmp_path / "cap")


def test_the_rate_asked_for_sets_the_thresholds(data: Path, tmp_path: Path) -> None:
    configuration = make_configuration(calibration_fraction=0.5, false_reject_rate=0.5)
    detector = run_fit(data, tmp_path / "run", configuration).detector
    scores = sorted(detector.calibration.image_scores)
    assert len(scores) == IMAGES // 2
    assert detector.operating_point.false_reject_rate == 0.5
    assert detector.operating_point.image_threshold == scores[3]  # 3 of the 7 ranks are above it, and 0.5 * 7 >= 3
    assert detector.operating_point.pixel_threshold == sorted(detector.calibration.map_maxima)[3]
    default = run_fit(data, tmp_path / "default").detector
    assert default.operating_point.false_reject_rate == pytest.approx(1 / (HELD_OUT + 1))


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Of an untrained encoder."""
    torch.manual_seed(0)
    density = create_density(DETECTOR.density, CPU)
    return Scan(DETECTOR, create_encoder(DETECTOR.encoder, GEOMETRY), density, CPU)


def rows(scan: Scan, image: NDArray[np.uint8]) -> set[bytes]:
    return {row.tobytes() for row in scan.embed(image[None]).flatten(0, 2).numpy()}


@pytest.mark.parametrize(("size", "of_each"), [(20, 5), (22, 6), (1, 1), (10**6, GEOMETRY.grid_size**2)])
def test_the_bank_has_as_many_windows_of_every_image(scan: Scan, size: int, of_each: int) -> None:
    images = np.stack([pixels(seed) for seed in range(4)])
    bank = draw_bank(scan, images, size, seed=0)
    assert bank.shape == (4 * of_each, scan.encoder.dimension)
    assert bank.dtype == np.float32
    for number, image in enumerate(images):
        drawn = {row.tobytes() for row in bank[number * of_each : (number + 1) * of_each]}
        assert len(drawn) == of_each  # none twice
        assert drawn <= rows(scan, image)


def test_the_bank_is_drawn_at_random_and_the_seed_decides(scan: Scan) -> None:
    images = np.stack([pixels(0)] * 3)  # the same image: the same windows would be the same rows
    bank = draw_bank(scan, images, 30, seed=0)
    np.testing.assert_array_equal(bank, draw_bank(scan, images, 30, seed=0))
    assert not np.array_equal(bank, draw_bank(scan, images, 30, seed=1))
    assert not np.array_equal(bank[:10], bank[10:20])


approx = partial(pytest.approx, rel=0, abs=1e-5)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_calibration_scores_are_those_that_the_detector_gives(scan: Scan, resize: ResizeMode) -> None:
    originals = [pixels(seed)[: 20 + 10 * seed] for seed in range(5)]
    placed = [place_image(image, GEOMETRY.image_size, resize) for image in originals]
    images, contents = np.stack([image for image, _ in placed]), [placement.content for _, placement in placed]
    scan.density.fit(draw_bank(scan, images[:2], 30, seed=0))
    calibration_set = calibrate(scan, GEOMETRY, images[2:], contents[2:])
    calibration = calibration_set.scores

    configuration = DETECTOR.model_copy(update={"resize": resize})
    own = Scan(configuration, scan.encoder, scan.density, CPU)
    detector = Detector("cap", own, calibration_set, data_fingerprint="0" * 64)
    predictions = [detector.predict([image])[0] for image in originals[2:]]
    # Float32 sums may round otherwise from one call to the next: the allocator decides how arrays are aligned.
    assert calibration.image_scores == approx([prediction.image_score for prediction in predictions])
    insides = [prediction.placement.crop(prediction.anomaly_map) for prediction in predictions]
    assert calibration.map_maxima == approx([inside.max() for inside in insides])
    if resize == "squash":  # all that was scanned counts
        assert calibration.image_scores == approx([prediction.score_map.max() for prediction in predictions])
        assert calibration.map_maxima == approx([prediction.anomaly_map.max() for prediction in predictions])
    else:
        assert all(
            inside.shape != prediction.anomaly_map.shape
            for inside, prediction in zip(insides, predictions, strict=True)
        )
    assert len(set(calibration.image_scores)) == 3
    assert calibration_set.score_maps == approx(np.stack([prediction.score_map for prediction in predictions]))
    assert calibration_set.contents == tuple(prediction.placement.content for prediction in predictions)
    np.testing.assert_array_equal(calibration_set.inputs, images[2:])


def test_a_letterboxed_fit_calibrates_on_the_held_out_images_as_they_lie(data: Path, tmp_path: Path) -> None:
    for index, path in enumerate(sorted(data.iterdir())):  # each lies in its square in its own way
        shown = np.s_[: 12 + 3 * index] if index % 2 else np.s_[:, : 12 + 3 * index]
        write(path, read_image(path)[shown])
    letterbox = DETECTOR.model_copy(update={"resize": "letterbox"})
    configuration = make_configuration(detector=letterbox, training={"steps": 1})
    detector = run_fit(data, tmp_path / "run", configuration).detector
    predictions = [detector.predict([read_image(path)])[0] for path in data.iterdir()]
    scores = [prediction.image_score for prediction in predictions]
    maxima = [prediction.placement.crop(prediction.anomaly_map).max() for prediction in predictions]
    for image_score, maximum in zip(detector.calibration.image_scores, detector.calibration.map_maxima, strict=True):
        assert any(pair == approx([image_score, maximum]) for pair in zip(scores, maxima, strict=True))


def test_stage_2_says_how_far_it_is(data: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    run_fit(data, tmp_path / "run", count=lambda *counted: told.append(counted))
    images = IMAGES - HELD_OUT
    assert told[:images] == [("embedding images, pass 1", done, images) for done in range(1, images + 1)]


def test_a_kernel_density_learns_from_all_windows_and_says_what_it_made(data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    detector = run_fit(data, tmp_path / "run", make_configuration(bank_size=None), stage=told.append).detector
    facts = detector.description()["members"][0]
    windows = (IMAGES - HELD_OUT) * GEOMETRY.grid_size**2
    assert (facts["mode"], facts["samples"], facts["offered"]) == (
        "exact",
        windows,
        windows,
    )  # so few are not compressed
    assert f"exact: a bank of {windows} embeddings" in told


def test_a_compressed_density_goes_all_the_way(data: Path, tmp_path: Path) -> None:
    density = KernelDensityConfiguration(mode="compressed", centres=40, reduction=ReductionConfiguration(dimension=9))
    configuration = make_configuration(
        detector=DETECTOR.model_copy(update={"density": density}), bank_size=None, training={"steps": 1}
    )
    told: list[str] = []
    detector = run_fit(data, tmp_path / "run", configuration, stage=told.append).detector
    facts = detector.description()["members"][0]
    windows = (IMAGES - HELD_OUT) * GEOMETRY.grid_size**2
    assert (facts["mode"], facts["bank"], facts["offered"]) == ("compressed", 40, windows)
    assert facts["samples"] == windows - facts["held_out"] == windows - windows // 10
    assert any(
        f"40 centres for {facts['samples']} embeddings; error on {windows // 10} held-out" in text for text in told
    )
    store = ModelStore(tmp_path / "models")
    loaded = Detector.load(store.folder("cap", store.publish("cap", detector.save)), "cpu")
    assert loaded.description()["members"] == [facts]
    for before, after in zip(detector.predict([pixels(0)]), loaded.predict([pixels(0)]), strict=True):
        np.testing.assert_array_equal(after.score_map, before.score_map)


def test_a_stream_embeds_the_same_windows_each_time(scan: Scan) -> None:
    images = np.stack([pixels(seed) for seed in range(3)])
    for size, of_each in ((30, 10), (None, GEOMETRY.grid_size**2)):
        stream = WindowStream(scan, images, size, seed=0)
        assert (stream.count, stream.dimension) == (3 * of_each, scan.encoder.dimension)
        first, again = (torch.cat(list(stream)) for _ in range(2))
        assert first.shape == (stream.count, stream.dimension)
        torch.testing.assert_close(first, again)
        np.testing.assert_array_equal(first.numpy(), draw_bank(scan, images, size, seed=0))


@pytest.mark.parametrize(
    ("density", "asked", "size"),
    [
        (KernelDensityConfiguration(), None, None),
        (KernelDensityConfiguration(), 7, 7),
        (GaussianDensityConfiguration(), None, 4096),
        (GaussianDensityConfiguration(), 7, 7),
    ],
)
def test_how_many_embeddings_where_nothing_is_said(density: Any, asked: int | None, size: int | None) -> None:
    assert bank_size_for(density, asked) == size
