from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.geometry import Box, ScanGeometry
from models.heatmap import peak_window
from models.images import Placement, ResizeMode
from models.prediction import Point, Region
from models.regions import MAX_REGIONS, find_regions, peak_region

GEOMETRY = ScanGeometry()
SIZE = GEOMETRY.image_size
MODES: tuple[ResizeMode, ...] = ("squash", "letterbox")


def as_it_is(size: int) -> Placement:
    """An image that is the detector's input already."""
    return Placement(original_width=size, original_height=size, size=size, mode="squash")


def flood(above: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """The 8-connected areas as sets of (y, x), by walking from neighbour to neighbour."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(above), strict=True)}
    areas = []
    while left:
        area, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            area.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            front.extend(around)
        areas.append(area)
    return areas


def filled(pixels: set[tuple[int, int]], shape: tuple[int, int]) -> set[tuple[int, int]]:
    """The area and what it encloses: all that a walk from outside, side to side, does not reach."""
    height, width = shape
    outside, front = {(-1, -1)}, [(-1, -1)]
    while front:
        y, x = front.pop()
        for step in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            inside_frame = -1 <= step[0] <= height and -1 <= step[1] <= width
            if inside_frame and step not in outside and step not in pixels:
                outside.add(step)
                front.append(step)
    return {(y, x) for y in range(height) for x in range(width)} - outside


def drawn(contour: tuple[Point, ...], shape: tuple[int, int]) -> set[tuple[int, int]]:
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.array([(point.x, point.y) for point in contour], np.int32)], 1)
    return {(int(y), int(x)) for y, x in zip(*np.nonzero(canvas), strict=True)}


def assert_region(region: Region, area: set[tuple[int, int]], values: NDArray[np.float32]) -> None:
    """A region says of an area what a look at each of its pixels says."""
    rows, columns = [y for y, _ in area], [x for _, x in area]
    assert (region.box.x, region.box.y) == (min(columns), min(rows))
    assert (region.box.width, region.box.height) == (max(columns) - min(columns) + 1, max(rows) - min(rows) + 1)
    assert region.area == len(area)
    assert region.peak_score == max(float(values[pixel]) for pixel in area)
    assert values[region.peak.y, region.peak.x] == region.peak_score
    assert (region.peak.y, region.peak.x) in area
    assert {(point.y, point.x) for point in region.contour} <= area
    assert drawn(region.contour, values.shape) == filled(area, values.shape)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.02, 0.7), size=st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_regions_are_those_of_a_flood_fill(seed: int, share: float, size: int) -> None:
    values = np.random.default_rng(seed).random((size, size), dtype=np.float32)
    threshold = 1 - share
    areas = flood(values > threshold)
    areas.sort(key=lambda area: -max(values[pixel] for pixel in area))
    regions = find_regions(values, threshold, as_it_is(size))
    assert len(regions) == len(areas)
    for region, area in zip(regions, areas, strict=True):
        assert_region(region, area, values)


def test_a_value_at_the_threshold_is_below_it() -> None:
    values = np.zeros((8, 8), np.float32)
    values[2, 3] = 0.5
    assert find_regions(values, 0.5, as_it_is(8)) == ()
    region, *others = find_regions(values, np.nextafter(0.5, 0), as_it_is(8))
    assert not others
    assert_region(region, {(2, 3)}, values)


def test_a_hole_in_a_region_is_no_part_of_its_area() -> None:
    values = np.zeros((9, 9), np.float32)
    values[1:8, 1:8] = 1
    values[3:6, 3:6] = 0
    values[4, 4] = 2
    core, ring = find_regions(values, 0.5, as_it_is(9))
    assert (core.area, ring.area) == (1, 40)
    assert {(point.y, point.x) for point in ring.contour} == {(1, 1), (1, 7), (7, 1), (7, 7)}


def test_of_too_many_regions_the_highest_peaks_are_kept() -> None:
    side = 2 * (MAX_REGIONS + 20)
    values = np.zeros((side, side), np.float32)
    values[::2, ::2] = np.random.default_rng(0).permutation(side**2 // 4).reshape(side // 2, side // 2) + 1
    regions = find_regions(values, 0.5, as_it_is(side))
    assert len(regions) == MAX_REGIONS
    assert [region.peak_score for region in regions] == np.sort(values, axis=None)[::-1][:MAX_REGIONS].tolist()
    for region in regions:
        assert (region.area, region.box) == (1, Box(x=region.peak.x, y=region.peak.y, width=1, height=1))
        assert values[region.peak.y, region.peak.x] == region.peak_score


# --- in the original image ------------------------------------------------------------------------------------------


def spot(placement: Placement, x: float, y: float, radius: float) -> NDArray[np.float32]:
    """An anomaly map with a spot over the original image's pixel (x, y), as wide as ``radius`` of its pixels."""
    box = placement.content
    scale_x, scale_y = placement.original_width / box.width, placement.original_height / box.height
    rows, columns = np.indices((placement.size, placement.size))
    across = (columns - box.x + 0.5) * scale_x - 0.5 - x
    down = (rows - box.y + 0.5) * scale_y - 0.5 - y
    return np.exp(-(across**2 + down**2) / (2 * radius**2)).astype(np.float32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("width", "height"), [(SIZE, SIZE), (420, 300), (300, 420), (120, 80), (SIZE + 1, SIZE - 1)])
def test_a_region_lies_where_the_original_image_has_it(mode: ResizeMode, width: int, height: int) -> None:
    placement = Placement(original_width=width, original_height=height, size=SIZE, mode=mode)
    x, y, radius, threshold = round(0.7 * width), round(0.4 * height), max(width, height) / 16, 0.6
    radius_above = radius * np.sqrt(-2 * np.log(threshold))
    anomaly_map = spot(placement, x, y, radius)
    regions = find_regions(anomaly_map, threshold, placement)
    assert len(regions) == 1
    box, pixel = regions[0].box, max(1.0, max(width, height) / SIZE)  # a pixel of the map, in those of the original
    assert (box.x + box.width / 2, box.y + box.height / 2) == pytest.approx((x + 0.5, y + 0.5), abs=pixel)
    assert (box.width, box.height) == pytest.approx((2 * radius_above, 2 * radius_above), abs=2 * pixel)
    assert regions[0].area == pytest.approx(np.pi * radius_above**2, rel=0.15)
    assert (regions[0].peak.x, regions[0].peak.y) == pytest.approx((x, y), abs=pixel)
    values = placement.map_to_original(anomaly_map)
    assert_region(regions[0], flood(values > threshold)[0], values)


def test_what_lies_in_the_padding_of_a_letterbox_is_no_region() -> None:
    placement = Placement(original_width=400, original_height=200, size=SIZE, mode="letterbox")
    values = np.ones((SIZE, SIZE), np.float32)
    box = placement.content
    values[box.y : box.y + box.height] = 0
    assert find_regions(values, 0.5, placement) == ()


# --- the peak window ------------------------------------------------------------------------------------------------


def peak_of(
    score_map: NDArray[np.float32], anomaly_map: NDArray[np.float32], geometry: ScanGeometry, placement: Placement
) -> Region:
    return peak_region(peak_window(score_map, geometry, placement.content), anomaly_map, geometry, placement)


def peak(
    placement: Placement, window: tuple[int, int], geometry: ScanGeometry = GEOMETRY, others: float = 0
) -> tuple[Region, NDArray[np.float32]]:
    score_map = np.full((geometry.grid_size, geometry.grid_size), others, np.float32)
    score_map[window] = 1
    anomaly_map = np.random.default_rng(0).random((geometry.image_size, geometry.image_size), dtype=np.float32)
    return peak_of(score_map, anomaly_map, geometry, placement), anomaly_map


@pytest.mark.parametrize("window", [(0, 0), (56, 0), (17, 30), (56, 56)])
def test_the_peak_region_is_the_window_with_the_highest_score(window: tuple[int, int]) -> None:
    region, anomaly_map = peak(as_it_is(SIZE), window)
    assert region.box == GEOMETRY.window(*window)
    assert region.area == GEOMETRY.patch_size**2
    center = GEOMETRY.center(*window)
    assert (region.peak.y, region.peak.x) == pytest.approx(center, abs=0.5)
    assert region.peak_score == anomaly_map[region.peak.y, region.peak.x]
    inside = {
        (y, x)
        for y in range(region.box.y, region.box.y + region.box.height)
        for x in range(region.box.x, region.box.x + region.box.width)
    }
    assert drawn(region.contour, anomaly_map.shape) == inside


def assert_inside(region: Region, placement: Placement) -> None:
    box = region.box
    assert box.x + box.width <= placement.original_width
    assert box.y + box.height <= placement.original_height
    assert region.area == box.width * box.height
    for point in (region.peak, *region.contour):
        assert box.x <= point.x < box.x + box.width
        assert box.y <= point.y < box.y + box.height


@pytest.mark.parametrize("mode", MODES)
@given(width=st.integers(1, 2000), height=st.integers(1, 2000), i=st.integers(0, 56), j=st.integers(0, 56))
@settings(max_examples=60, deadline=None)
def test_the_peak_region_lies_inside_the_original_image(
    mode: ResizeMode, width: int, height: int, i: int, j: int
) -> None:
    placement = Placement(original_width=width, original_height=height, size=SIZE, mode=mode)
    assert_inside(peak(placement, (i, j))[0], placement)


@pytest.mark.parametrize(("width", "height"), [(400, 200), (200, 400), (1000, 90)])
def test_a_score_in_the_padding_of_a_letterbox_is_not_the_peak(width: int, height: int) -> None:
    placement = Placement(original_width=width, original_height=height, size=SIZE, mode="letterbox")
    content = placement.content
    scores = np.zeros((GEOMETRY.grid_size, GEOMETRY.grid_size), np.float32)
    scores[[0, 0, -1, -1], [0, -1, 0, -1]] = 9  # all four corners
    middle = GEOMETRY.grid_size // 2
    window = (middle, middle + 9) if width > height else (middle + 9, middle)
    scores[window] = 1
    region = peak_of(scores, np.zeros((SIZE, SIZE), np.float32), GEOMETRY, placement)
    box = GEOMETRY.window(*window)
    assert region.box == placement.to_original_box(box)
    center_y, center_x = GEOMETRY.center(*window)
    assert region.peak.x == pytest.approx((center_x - content.x + 0.5) * width / content.width - 0.5, abs=1)
    assert region.peak.y == pytest.approx((center_y - content.y + 0.5) * height / content.height - 0.5, abs=1)


@pytest.mark.parametrize("size", [97, 100, 131, SIZE])
@pytest.mark.parametrize(("width", "height"), [(2000, 10), (10, 2000), (1000, 30)])
def test_an_image_thinner_than_the_distance_of_two_windows_has_a_peak_too(size: int, width: int, height: int) -> None:
    """No window's centre need lie in it; the nearest ones stand for it, and never one in a corner."""
    geometry = ScanGeometry(image_size=size)
    placement = Placement(original_width=width, original_height=height, size=size, mode="letterbox")
    middle, along = geometry.grid_size // 2, geometry.grid_size // 3
    scores = np.zeros((geometry.grid_size, geometry.grid_size), np.float32)
    window = (slice(middle - 1, middle + 2), along) if width > height else (along, slice(middle - 1, middle + 2))
    scores[window] = 1
    region = peak_of(scores, np.zeros((size, size), np.float32), geometry, placement)
    assert_inside(region, placement)
    expected = (geometry.center(along, along)[0] + 0.5) * max(width, height) / size - 0.5
    assert max(region.peak.x, region.peak.y) == pytest.approx(expected, abs=1)
