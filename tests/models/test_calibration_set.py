from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.calibration import Calibration
from models.calibration_set import CALIBRATION_FILE, CalibrationSet, calibrate
from models.geometry import Box, ScanGeometry
from models.heatmap import GaussianUpsampler
from models.region_of_interest import RegionOfInterest
from models.scan import Look

GEOMETRY = ScanGeometry(image_size=64)
WHOLE, TOP = Box(x=0, y=0, width=64, height=64), Box(x=0, y=0, width=64, height=20)


class Brightness:
    """Scores a window by the pixel at its centre, so that a score is known without a network."""

    def look(self, images: NDArray[np.uint8]) -> Look:
        centres = [round(GEOMETRY.center(k, k)[0]) for k in range(GEOMETRY.grid_size)]
        scores = images[:, centres][:, :, centres, 0].astype(np.float32)
        anomaly_maps = GaussianUpsampler(GEOMETRY)(torch.from_numpy(scores)).numpy()
        return Look(scores, anomaly_maps, images.mean(axis=(1, 2), dtype=np.float32), np.zeros_like(scores))


def inputs(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def test_a_calibration_set_keeps_what_its_scores_are_made_of() -> None:
    images = inputs(4)
    made = calibrate(Brightness(), GEOMETRY, images, [WHOLE, WHOLE, TOP, TOP])
    score_maps, anomaly_maps, summaries, _ = Brightness().look(images)
    np.testing.assert_array_equal(made.score_maps, score_maps)
    np.testing.assert_allclose(made.summaries, summaries, rtol=1e-6)
    np.testing.assert_array_equal(made.inputs, images)
    rows, _ = GEOMETRY.windows_of(TOP)
    assert len(rows) < GEOMETRY.grid_size  # so that the content's box matters
    expected = [*score_maps[:2].max(axis=(1, 2)), *score_maps[2:, rows.start : rows.stop].max(axis=(1, 2))]
    np.testing.assert_array_equal(made.scores.image_scores, expected)
    maxima = [*anomaly_maps[:2].max(axis=(1, 2)), *anomaly_maps[2:, :20].max(axis=(1, 2))]
    np.testing.assert_allclose(made.scores.map_maxima, maxima, rtol=1e-6)


@pytest.mark.parametrize("sigma", [None, 4.0])
def test_in_a_region_of_interest_only_what_lies_there_calibrates(sigma: float | None) -> None:
    contents = [WHOLE, TOP, WHOLE]
    made = calibrate(Brightness(), GEOMETRY, inputs(3), contents)
    mask = np.zeros((4, 4), np.bool_)
    mask[:, :1] = True
    region = RegionOfInterest.of_mask(mask)
    found = made.within(region, GEOMETRY, sigma)
    maps = GaussianUpsampler(GEOMETRY, sigma)(torch.from_numpy(made.score_maps)).numpy()
    for number, content in enumerate(contents):
        inside = made.score_maps[number][region.windows(GEOMETRY, content)]
        assert found.image_scores[number] == inside.max() < made.scores.image_scores[number]
        shown = maps[number, : content.height][region.pixels(content)]
        assert found.map_maxima[number] == pytest.approx(shown.max(), rel=1e-6)


def test_a_calibration_set_reads_back_to_the_last_bit(tmp_path: Path) -> None:
    made = calibrate(Brightness(), GEOMETRY, inputs(5), [WHOLE, TOP, WHOLE, TOP, WHOLE])
    made.save(tmp_path)
    loaded = CalibrationSet.load(tmp_path)
    with (tmp_path / CALIBRATION_FILE).open("r+b") as file:  # what is loaded does not change with the disk
        file.write(bytes((tmp_path / CALIBRATION_FILE).stat().st_size))
    for name in ("score_maps", "summaries", "inputs"):
        assert getattr(loaded, name).dtype == getattr(made, name).dtype
        np.testing.assert_array_equal(getattr(loaded, name), getattr(made, name))
    np.testing.assert_array_equal(loaded.scores.image_scores, made.scores.image_scores)
    np.testing.assert_array_equal(loaded.scores.map_maxima, made.scores.map_maxima)
    assert loaded.contents == made.contents
    assert len(loaded) == 5


def test_parts_of_different_numbers_of_images_are_refused() -> None:
    made = calibrate(Brightness(), GEOMETRY, inputs(3), [WHOLE] * 3)
    with pytest.raises(ValueError, match="of 2, 3, 3, 3, 3 images"):
        CalibrationSet(
            Calibration(np.zeros(2), np.zeros(2)), made.score_maps, made.summaries, made.contents, made.inputs
        )
