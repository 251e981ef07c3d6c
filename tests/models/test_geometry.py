from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from models.geometry import Box, ScanGeometry


@st.composite
def geometries(draw: st.DrawFn) -> ScanGeometry:
    patch_size = draw(st.integers(1, 9))
    image_size = draw(st.integers(patch_size, 24))
    return ScanGeometry(image_size=image_size, patch_size=patch_size, stride=draw(st.integers(1, 11)))


def starts(geometry: ScanGeometry) -> list[int]:
    """First pixels of the windows along one side, found by walking."""
    return [
        start
        for start in range(0, geometry.image_size, geometry.stride)
        if start + geometry.patch_size <= geometry.image_size
    ]


def painted(geometry: ScanGeometry, i: int, j: int) -> NDArray[np.bool_]:
    """The image with the pixels of window (i, j) set."""
    box = geometry.window(i, j)
    image = np.zeros((geometry.image_size, geometry.image_size), dtype=np.bool_)
    image[box.y : box.y + box.height, box.x : box.x + box.width] = True
    return image


def test_the_papers_scan() -> None:
    geometry = ScanGeometry()
    assert (geometry.image_size, geometry.patch_size, geometry.stride) == (256, 32, 4)
    assert geometry.grid_size == 57
    assert geometry.unscanned == 0
    assert geometry.window(0, 0) == Box(x=0, y=0, width=32, height=32)
    assert geometry.window(56, 1) == Box(x=4, y=224, width=32, height=32)
    assert geometry.center(0, 0) == (15.5, 15.5)
    assert geometry.center(2, 56) == (23.5, 239.5)


@pytest.mark.parametrize(("image_size", "grid", "unscanned"), [(32, 1, 0), (35, 1, 3), (36, 2, 0), (97, 17, 1)])
def test_edge_pixels_that_do_not_fill_a_stride_are_unscanned(image_size: int, grid: int, unscanned: int) -> None:
    geometry = ScanGeometry(image_size=image_size)
    assert (geometry.grid_size, geometry.unscanned) == (grid, unscanned)


@given(geometries())
def test_windows_are_those_that_a_walk_over_the_image_finds(geometry: ScanGeometry) -> None:
    expected = starts(geometry)
    assert geometry.grid_size == len(expected)
    assert [geometry.window(i, 0).y for i in range(geometry.grid_size)] == expected
    assert [geometry.window(0, j).x for j in range(geometry.grid_size)] == expected
    assert geometry.unscanned == geometry.image_size - (expected[-1] + geometry.patch_size)


@given(geometries(), st.data())
def test_the_center_is_the_mean_of_the_windows_pixels(geometry: ScanGeometry, data: st.DataObject) -> None:
    i, j = (data.draw(st.integers(0, geometry.grid_size - 1)) for _ in range(2))
    rows, columns = np.nonzero(painted(geometry, i, j))
    assert len(rows) == geometry.patch_size**2
    assert geometry.center(i, j) == (rows.mean(), columns.mean())


@given(geometries(), st.data())
def test_windows_over_names_exactly_the_windows_that_hold_the_pixel(
    geometry: ScanGeometry, data: st.DataObject
) -> None:
    y, x = (data.draw(st.integers(-2, geometry.image_size + 2)) for _ in range(2))
    rows, columns = geometry.windows_over(y, x)
    lying_over = [k for k in range(geometry.grid_size) if 0 <= y - geometry.window(k, 0).y < geometry.patch_size]
    standing_over = [k for k in range(geometry.grid_size) if 0 <= x - geometry.window(0, k).x < geometry.patch_size]
    assert (list(rows), list(columns)) == (lying_over, standing_over)


def lying_in(geometry: ScanGeometry, content: Box, reach: float) -> set[tuple[int, int]]:
    """The windows whose centre lies in ``content`` or at most ``reach`` beyond, one by one."""
    found = set()
    for i in range(geometry.grid_size):
        for j in range(geometry.grid_size):
            y, x = geometry.center(i, j)
            below = max(content.y - y, y - (content.y + content.height - 1))
            beside = max(content.x - x, x - (content.x + content.width - 1))
            if max(below, beside) <= reach:
                found.add((i, j))
    return found


@given(geometries(), st.data())
def test_windows_of_an_image_are_those_centred_in_it(geometry: ScanGeometry, data: st.DataObject) -> None:
    side = geometry.image_size
    x, y = (data.draw(st.integers(0, side - 1)) for _ in range(2))
    width, height = data.draw(st.integers(1, side - x)), data.draw(st.integers(1, side - y))
    content = Box(x=x, y=y, width=width, height=height)
    counted = set(product(*geometry.windows_of(content)))
    assert lying_in(geometry, content, 0) <= counted
    assert counted == lying_in(geometry, content, geometry.stride / 2)


@given(geometries(), st.integers(1, 24), st.booleans())
def test_an_image_that_lies_in_the_middle_has_a_window_however_thin(
    geometry: ScanGeometry, height: int, upright: bool
) -> None:
    side = geometry.image_size
    height = min(height, side)
    start = (side - height) // 2
    lying = Box(x=0, y=start, width=side, height=height)
    standing = Box(x=start, y=0, width=height, height=side)
    assert all(geometry.windows_of(standing if upright else lying))
    assert geometry.windows_of(Box(x=0, y=0, width=side, height=side)) == (range(geometry.grid_size),) * 2


@given(geometries(), st.integers(0, 40))
def test_windows_of_another_length_are_those_of_an_image_of_that_size(geometry: ScanGeometry, more: int) -> None:
    length = geometry.patch_size + more
    assert geometry.windows(length) == geometry.model_copy(update={"image_size": length}).grid_size


@pytest.mark.parametrize("index", [(-1, 0), (0, -1), (57, 0), (0, 57)])
def test_a_window_outside_the_grid_is_refused(index: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match="57x57"):
        ScanGeometry().window(*index)


def test_an_edge_shorter_than_a_window_is_refused() -> None:
    assert ScanGeometry().windows(32) == 1
    with pytest.raises(ValueError, match="31 pixels holds no window of 32"):
        ScanGeometry().windows(31)


@pytest.mark.parametrize("field", ["image_size", "patch_size", "stride"])
@pytest.mark.parametrize("value", [0, -4])
def test_sizes_must_be_positive(field: str, value: int) -> None:
    with pytest.raises(ValidationError, match=field):
        ScanGeometry.model_validate({field: value})


def test_a_patch_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValidationError, match="patch_size 32 is larger than image_size 31"):
        ScanGeometry(image_size=31)


def test_a_geometry_survives_json_and_cannot_be_changed() -> None:
    geometry = ScanGeometry(image_size=97, patch_size=16, stride=3)
    assert ScanGeometry.model_validate_json(geometry.model_dump_json()) == geometry
    with pytest.raises(ValidationError, match="frozen"):
        geometry.stride = 2  # type: ignore[misc]
