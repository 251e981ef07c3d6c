"""How images and masks lie in the square of a scan, and the way back to the original."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.geometry import Box, ScanGeometry
from models.images import Placement, ResizeMode, place_image, place_mask, read_image

SIZE = ScanGeometry().image_size
MODES: tuple[ResizeMode, ...] = ("squash", "letterbox")

modes = st.sampled_from(MODES)
sides = st.one_of(st.integers(1, 40), st.integers(41, 700))


class TestMasks:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), width=sides, height=sides, mode=modes)
    def test_nearest_and_no_defect_disappears(
        self, data: st.DataObject, width: int, height: int, mode: ResizeMode
    ) -> None:
        mask = np.zeros((height, width), dtype=np.bool_)
        for _ in range(data.draw(st.integers(0, 4))):
            x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
            mask[y : y + data.draw(st.integers(1, 60)), x : x + data.draw(st.integers(1, 3))] = True
        size = 64
        placed = place_mask(mask, size, mode)
        assert placed.shape == (size, size)
        box = Placement(width, height, size, mode).content
        content = placed[box.y : box.y + box.height, box.x : box.x + box.width]
        assert content.sum() == placed.sum()
        # What the nearest pixels miss may only be added where the defect lies.
        nearest = mask[np.ix_(nearest_pixels(height, box.height), nearest_pixels(width, box.width))]
        assert content[nearest].all()
        touched = np.zeros_like(content)
        rows, columns = np.nonzero(mask)
        touched[rows * box.height // height, columns * box.width // width] = True
        assert touched[content & ~nearest].all()
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        for label in range(1, count):
            rows, columns = np.nonzero(labels == label)
            first_row, end_row = rows.min() * box.height // height, -(-(rows.max() + 1) * box.height // height)
            first_column, end_column = columns.min() * box.width // width, -(-(columns.max() + 1) * box.width // width)
            assert content[first_row:end_row, first_column:end_column].any()


class TestPlacing:
    @settings(max_examples=60, deadline=None)
    @given(width=sides, height=sides, mode=modes)
    def test_shapes_and_content(self, width: int, height: int, mode: ResizeMode) -> None:
        image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        placed, placement = place_image(image, SIZE, mode)
        assert placed.shape == (SIZE, SIZE, 3)
        assert placed.dtype == np.uint8
        box = placement.content
        assert max(box.width, box.height) == SIZE
        if mode == "squash":
            assert (box.width, box.height) == (SIZE, SIZE)
        else:
            assert abs(box.width / SIZE - width / max(width, height)) <= 0.5 / SIZE or box.width == 1
            assert abs((SIZE - box.width) / 2 - box.x) <= 0.5
            assert abs((SIZE - box.height) / 2 - box.y) <= 0.5
        restored = placement.map_to_original(placed[:, :, 0].astype(np.float32))
        assert restored.shape == (height, width)
        assert restored.dtype == np.float32

    def test_the_same_size_changes_nothing(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        for mode in MODES:
            np.testing.assert_array_equal(place_image(image, SIZE, mode)[0], image)

    @pytest.mark.parametrize(("width", "height"), [(5000, 1), (1, 5000), (900, 700), (300, 8), (257, 255), (7, 3)])
    def test_shrinking_averages_every_pixel_also_where_the_other_axis_grows(self, width: int, height: int) -> None:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        placed, _ = place_image(image, SIZE, "squash")
        expected = image.astype(np.float64)
        for axis, length in enumerate((height, width)):
            if length > SIZE:
                expected = np.apply_along_axis(area_average, axis, expected, SIZE)
        for axis, length in enumerate((height, width)):
            if length <= SIZE:
                expected = np.apply_along_axis(bilinear, axis, expected, SIZE)
        assert np.abs(placed - expected).max() <= 1.5  # OpenCV rounds after each of the two steps

    def test_a_letterbox_is_filled_with_the_images_reflection(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (40, SIZE, 3), dtype=np.uint8)
        placed, placement = place_image(image, SIZE, "letterbox")
        assert placement.content == Box(x=0, y=108, width=SIZE, height=40)
        np.testing.assert_array_equal(placed, np.pad(image, ((108, 108), (0, 0), (0, 0)), mode="symmetric"))

    def test_a_flat_image_stays_flat(self) -> None:
        for mode in MODES:
            for shape in ((1, 5000, 3), (333, 77, 3), (2, 2, 3)):
                placed, _ = place_image(np.full(shape, 93, dtype=np.uint8), SIZE, mode)
                assert set(np.unique(placed)) == {93}


class TestBackToTheOriginal:
    @settings(max_examples=60, deadline=None)
    @given(
        width=st.integers(100, 1200),
        height=st.integers(100, 1200),
        mode=modes,
        x=st.floats(0.3, 0.7),
        y=st.floats(0.3, 0.7),
    )
    def test_a_blob_lands_where_it_is(self, width: int, height: int, mode: ResizeMode, x: float, y: float) -> None:
        placement = Placement(width, height, SIZE, mode)
        box = placement.content
        peak_x, peak_y = box.x + x * box.width - 0.5, box.y + y * box.height - 0.5
        blob = gaussian_blob((SIZE, SIZE), peak_x, peak_y, max(1.0, box.width / 20), max(1.0, box.height / 20))
        found = centroid(placement.map_to_original(blob))
        expected = (x * width - 0.5, y * height - 0.5)  # a share of the image is the same share before and after
        assert found == pytest.approx(expected, abs=0.5)
        assert placement.point_to_original(peak_x, peak_y) == pytest.approx(expected, abs=1e-6)

    @settings(max_examples=40, deadline=None)
    @given(width=st.integers(30, 900), height=st.integers(30, 900), mode=modes, x=st.floats(0.3, 0.7))
    def test_what_is_seen_in_the_input_is_found_in_the_original(
        self, width: int, height: int, mode: ResizeMode, x: float
    ) -> None:
        blob = gaussian_blob((height, width), x * width, 0.4 * height, width / 20, height / 20)
        image = np.repeat((250 * blob).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
        placed, placement = place_image(image, SIZE, mode)
        box = placement.content
        seen = np.zeros((SIZE, SIZE), dtype=np.float32)
        rows, columns = slice(box.y, box.y + box.height), slice(box.x, box.x + box.width)
        seen[rows, columns] = placed[rows, columns, 0]
        expected = centroid(image[:, :, 0].astype(np.float32))
        assert centroid(placement.map_to_original(seen)) == pytest.approx(expected, abs=0.5)
        assert placement.point_to_original(*centroid(seen)) == pytest.approx(expected, abs=0.5)

    @pytest.mark.parametrize(("width", "height"), [(5000, 1), (1, 5000), (900, 900), (64, 48), (640, 100)])
    @pytest.mark.parametrize("mode", MODES)
    def test_a_ramp_stays_a_ramp(self, width: int, height: int, mode: ResizeMode) -> None:
        placement = Placement(width, height, SIZE, mode)
        box = placement.content
        ramp = np.broadcast_to(np.arange(SIZE, dtype=np.float32), (SIZE, SIZE))
        along_x = placement.map_to_original(ramp)
        along_y = placement.map_to_original(np.ascontiguousarray(ramp.T)).T
        for values, start, content, original in (
            (along_x, box.x, box.width, width),
            (along_y, box.y, box.height, height),
        ):
            expected = start + (np.arange(original) + 0.5) * content / original - 0.5
            expected = np.clip(expected, start, start + content - 1)  # a border pixel reaches to the edge
            assert np.abs(values - expected).max() < 0.1  # averages of a step function lie that near its ramp

    @settings(max_examples=200, deadline=None)
    @given(data=st.data(), width=sides, height=sides, mode=modes)
    def test_boxes_cover_what_they_covered_and_stay_inside(
        self, data: st.DataObject, width: int, height: int, mode: ResizeMode
    ) -> None:
        placement = Placement(width, height, SIZE, mode)
        x, y = data.draw(st.integers(0, SIZE - 1)), data.draw(st.integers(0, SIZE - 1))
        box = Box(x=x, y=y, width=data.draw(st.integers(1, SIZE - x)), height=data.draw(st.integers(1, SIZE - y)))
        mapped = placement.to_original_box(box)
        assert mapped.x + mapped.width <= width
        assert mapped.y + mapped.height <= height
        for corner_x in (x, x + box.width - 1):
            for corner_y in (y, y + box.height - 1):
                original_x, original_y = placement.point_to_original(corner_x, corner_y)
                assert 0 <= original_x <= width - 1
                assert 0 <= original_y <= height - 1
                assert mapped.x - 0.5 <= original_x <= mapped.x + mapped.width - 0.5
                assert mapped.y - 0.5 <= original_y <= mapped.y + mapped.height - 0.5

    def test_the_content_is_the_whole_image(self) -> None:
        for mode in MODES:
            placement = Placement(601, 113, SIZE, mode)
            assert placement.to_original_box(placement.content) == Box(x=0, y=0, width=601, height=113)

    def test_a_map_of_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\(57, 57\).*256"):
            Placement(10, 10, SIZE, "squash").map_to_original(np.zeros((57, 57), dtype=np.float32))


class TestRealImages:
    def test_the_originals_shrink_to_the_published_small_ones(self) -> None:
        data = Path(os.environ.get("PLUMBLINE_DATA", Path(__file__).parents[2] / "../shared/data"))
        large = data / "mvtec_original/bottle/train/good/000.png"
        if not large.is_file():
            pytest.skip(f"no images in {data}; set PLUMBLINE_DATA")
        small = read_image(data / "mvtec_256/bottle/train/good/000.png")  # resized by area, by somebody else
        np.testing.assert_allclose(place_image(read_image(large), SIZE, "squash")[0], small, atol=1)


def gaussian_blob(shape: tuple[int, int], x: float, y: float, width: float, height: float) -> NDArray[np.float32]:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    blob: NDArray[np.float32] = np.exp(-(((columns - x) / width) ** 2 + ((rows - y) / height) ** 2) / 2)
    return blob.astype(np.float32)


def centroid(values: NDArray[np.float32]) -> tuple[float, float]:
    rows, columns = np.indices(values.shape)
    weights = values.astype(np.float64)
    return float((weights * columns).sum() / weights.sum()), float((weights * rows).sum() / weights.sum())


def nearest_pixels(original: int, size: int) -> NDArray[np.intp]:
    """Per output pixel the original one whose centre is nearest, the later of two, compared in whole numbers."""
    centers = (2 * np.arange(original) + 1) * size
    distances = np.abs(centers - ((2 * np.arange(size) + 1) * original)[:, np.newaxis])
    return np.asarray(original - 1 - distances[:, ::-1].argmin(axis=1), dtype=np.intp)


def area_average(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The mean over each output pixel's share of the line, by the integral of the step function."""
    integral = np.concatenate([[0.0], np.cumsum(values)])
    edges = np.interp(np.linspace(0, len(values), size + 1), np.arange(len(values) + 1), integral)
    return np.asarray(np.diff(edges) * size / len(values), dtype=np.float64)


def bilinear(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.asarray(np.interp((np.arange(size) + 0.5) * len(values) / size - 0.5, np.arange(len(values)), values))
