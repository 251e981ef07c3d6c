from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from models.geometry import Box, ScanGeometry
from models.images import Placement
from models.region_of_interest import LARGEST_SIDE, RegionOfInterest

GEOMETRY = ScanGeometry(image_size=64)
WHOLE = Box(x=0, y=0, width=64, height=64)
CONTENTS = [WHOLE, Box(x=0, y=12, width=64, height=40), Box(x=27, y=0, width=9, height=64)]


def random_mask(seed: int, height: int, width: int, share: float = 0.02) -> NDArray[np.bool_]:
    random = np.random.default_rng(seed)
    mask: NDArray[np.bool_] = random.random((height, width)) < share
    mask[random.integers(height), random.integers(width)] = True
    return mask


def test_a_mask_is_kept_as_it_is() -> None:
    mask = random_mask(0, 37, 211, 0.5)
    region = RegionOfInterest.of_mask(mask)
    np.testing.assert_array_equal(region.mask, mask)
    assert region.share == mask.mean()
    again = RegionOfInterest.model_validate_json(region.model_dump_json())
    assert again == region
    assert hash(again) == hash(region)


def test_a_large_mask_is_scaled_down_and_loses_nothing_that_is_inside() -> None:
    mask = np.zeros((3001, 40), np.bool_)
    mask[1234, 7] = True
    region = RegionOfInterest.of_mask(mask)
    assert region.mask.shape == (LARGEST_SIDE, 40)
    assert {(int(y), int(x)) for y, x in np.argwhere(region.mask)} == {(1234 * LARGEST_SIDE // 3001, 7)}


def test_a_mask_with_nothing_inside_is_refused() -> None:
    with pytest.raises(ValueError, match="all of the mask is black"):
        RegionOfInterest.of_mask(np.zeros((5, 5), np.bool_))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_png_is_no_region(content: bytes) -> None:
    with pytest.raises(ValidationError, match="this is none"):
        RegionOfInterest(png=base64.b64encode(content))


@pytest.mark.parametrize("size", [(LARGEST_SIDE + 1, 1), (1, LARGEST_SIDE + 1)])
def test_a_larger_mask_than_any_that_is_kept_is_refused(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("1", size, 1).save(buffer, "PNG")
    with pytest.raises(ValidationError, match="at most 1024 pixels a side"):
        RegionOfInterest(png=base64.b64encode(buffer.getvalue()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(CONTENTS), st.integers(1, 3))
def test_a_window_counts_where_it_is_the_nearest_to_a_pixel_inside(seed: int, content: Box, finer: int) -> None:
    """Pixel by pixel of the input; a mask of more pixels that shows the same changes nothing."""
    mask = random_mask(seed, content.height, content.width)
    rows, columns = GEOMETRY.windows_of(content)
    expected = np.zeros((GEOMETRY.grid_size, GEOMETRY.grid_size), np.bool_)
    for y, x in np.argwhere(mask):
        i = min(rows, key=lambda k: abs(GEOMETRY.center(k, k)[0] - (content.y + y)))
        j = min(columns, key=lambda k: abs(GEOMETRY.center(k, k)[0] - (content.x + x)))
        expected[i, j] = True
    region = RegionOfInterest.of_mask(mask.repeat(finer, axis=0).repeat(finer, axis=1))
    np.testing.assert_array_equal(region.windows(GEOMETRY, content), expected)


@pytest.mark.parametrize("content", CONTENTS)
def test_all_of_the_image_is_all_of_its_windows(content: Box) -> None:
    region = RegionOfInterest.of_mask(np.ones((1, 1), np.bool_))
    rows, columns = GEOMETRY.windows_of(content)
    counted = region.windows(GEOMETRY, content)
    assert counted[np.ix_(rows, columns)].all()
    assert counted.sum() == len(rows) * len(columns)
    assert region.pixels(content).all()
    assert region.over(3, 5).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(64, 200), st.integers(64, 200), st.integers(1, 90), st.integers(1, 90))
def test_no_value_inside_is_above_those_of_the_pixels_that_it_may_come_from(
    seed: int, height: int, width: int, mask_height: int, mask_width: int
) -> None:
    """What the pixel threshold of a region is calibrated on bounds what an image can show in it."""
    values = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    region = RegionOfInterest.of_mask(random_mask(seed, mask_height, mask_width))
    placement = Placement(original_width=width, original_height=height, size=64, mode="squash")
    inside = placement.map_to_original(values)[region.over(height, width)]
    if inside.size:  # a mask finer than the image may lie between its pixels
        assert inside.max() <= values[region.pixels(WHOLE)].max() + 1e-5


def test_pixels_inside_reach_one_pixel_further() -> None:
    mask = np.zeros((64, 64), np.bool_)
    mask[10:20, 30:33] = True
    counted = RegionOfInterest.of_mask(mask).pixels(WHOLE)
    expected = np.zeros_like(mask)
    expected[9:21, 29:34] = True
    np.testing.assert_array_equal(counted, expected)


@pytest.mark.parametrize(("height", "width"), [(5, 3), (3, 2), (8, 4), (13, 7), (64, 64)])
def test_the_mask_covers_an_image_of_any_size(height: int, width: int) -> None:
    """No pixel's centre lies between two of the mask: its sides are odd."""
    mask = random_mask(1, 5, 3, 0.4)
    rows = (2 * np.arange(height) + 1) * 5 // (2 * height)
    columns = (2 * np.arange(width) + 1) * 3 // (2 * width)
    np.testing.assert_array_equal(RegionOfInterest.of_mask(mask).over(height, width), mask[np.ix_(rows, columns)])


def test_what_is_shared_cannot_be_written_to() -> None:
    region = RegionOfInterest.of_mask(np.ones((2, 2), np.bool_))
    for shared in (region.mask, region.windows(GEOMETRY, WHOLE)):
        with pytest.raises(ValueError, match="read-only"):
            shared[0, 0] = False
