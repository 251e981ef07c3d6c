"""The part of the image that counts: a mask that covers the image as displayed, whatever the size of either."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Base64Bytes, BaseModel, ConfigDict, field_validator

from models.geometry import Box, ScanGeometry

LARGEST_SIDE = 1024  # pixels of a mask that is kept: four times the scan's default input
_BILINEAR_REACH = 1.0  # pixels: a value between pixels is interpolated from those less than this away
_NOTHING = "the region of interest is empty: all of the mask is black"

Bools = NDArray[np.bool_]


class RegionOfInterest(BaseModel):
    """A mask, stretched over the image as displayed; outside it nothing counts.

    Each pixel belongs to the window whose centre is nearest to it. A window counts if one of its own pixels lies
    inside; so an outermost window speaks for the edge beside it, and a region always has a window.

    Attributes:
        png: the mask, 1 bit a pixel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    png: Base64Bytes

    @field_validator("png")
    @classmethod
    def _is_a_region(cls, png: bytes) -> bytes:
        try:
            inside = _decoded(png).any()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"a region of interest is kept as a PNG image of at most {LARGEST_SIDE} pixels a side; this is none"
            ) from error
        if not inside:
            raise ValueError(_NOTHING)
        return png

    @classmethod
    def of_mask(cls, mask: Bools) -> Self:
        """The region of a mask (H, W); a side of more than ``LARGEST_SIDE`` pixels is scaled down to that.

        Raises:
            ValueError: if there is nothing inside.
        """
        if not mask.any():
            raise ValueError(_NOTHING)
        height, width = (min(length, LARGEST_SIDE) for length in mask.shape)
        kept = _covered(mask, _spans(height, mask.shape[0]), _spans(width, mask.shape[1]))
        buffer = io.BytesIO()
        Image.fromarray(kept).save(buffer, "PNG")
        return cls(png=base64.b64encode(buffer.getvalue()))

    @property
    def mask(self) -> Bools:
        """(H, W), true inside."""
        return _decoded(self.png)

    @property
    def share(self) -> float:
        """How much of the image lies inside, in (0, 1]."""
        return float(self.mask.mean())

    def over(self, height: int, width: int) -> Bools:
        """The mask over an image of this size: (height, width), by the nearest pixel."""
        stretched = cv2.resize(self.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return stretched.astype(np.bool_)

    def windows(self, geometry: ScanGeometry, content: Box) -> Bools:
        """The windows that count, (h, w), of those that count for an image that covers ``content`` of the input."""
        return _windows(self, geometry, content)

    def pixels(self, content: Box) -> Bools:
        """Pixels of ``content``, (height, width), from which a value inside the region may be interpolated."""
        rows, columns = self.mask.shape
        return _covered(
            self.mask,
            _spans(content.height, rows, _BILINEAR_REACH - 0.5),
            _spans(content.width, columns, _BILINEAR_REACH - 0.5),
        )


Spans = tuple[NDArray[np.int64], NDArray[np.int64]]


@lru_cache(maxsize=256)
def _windows(region: RegionOfInterest, geometry: ScanGeometry, content: Box) -> Bools:
    rows, columns = geometry.windows_of(content)
    height, width = region.mask.shape
    counted = np.zeros((geometry.grid_size, geometry.grid_size), np.bool_)
    counted[np.ix_(rows, columns)] = _covered(
        region.mask,
        _cells(geometry, rows, content.y, content.height, height),
        _cells(geometry, columns, content.x, content.width, width),
    )
    counted.flags.writeable = False  # it is shared
    return counted


def _cells(geometry: ScanGeometry, windows: range, start: int, length: int, count: int) -> Spans:
    """For each window, the mask's pixels along one edge that lie nearer to it than to its neighbours, at least in part.

    The image covers ``length`` pixels of the input from ``start`` on, and the mask's ``count`` pixels cover the image.
    """
    centres = np.array([geometry.center(k, k)[0] for k in windows])
    borders = (centres[:-1] + centres[1:]) / 2
    edges = np.concatenate([[start - 0.5], np.clip(borders, start - 0.5, start + length - 0.5), [start + length - 0.5]])
    shares = (edges - (start - 0.5)) / length * count
    return _whole(shares[:-1], shares[1:], count)


def _spans(parts: int, count: int, beyond: float = 0.0) -> Spans:
    """``count`` pixels in ``parts`` equal parts, each longer by ``beyond`` parts at either end: which each touches."""
    numbers = np.arange(parts, dtype=np.float64)
    scale = count / parts
    return _whole((numbers - beyond) * scale, (numbers + 1 + beyond) * scale, count)


def _whole(begins: NDArray[np.float64], ends: NDArray[np.float64], count: int) -> Spans:
    """Intervals on [0, count] as the whole pixels that they touch, at least one: (first, behind the last)."""
    rounding = 1e-9 * count
    first = np.clip(np.floor(begins + rounding), 0, count - 1).astype(np.int64)
    return first, np.clip(np.ceil(ends - rounding), first + 1, count).astype(np.int64)


def _covered(mask: Bools, rows: Spans, columns: Spans) -> Bools:
    """Whether anything is inside, for each span of rows by each span of columns."""
    sums = cv2.integral(mask.astype(np.uint8), sdepth=cv2.CV_64F)  # (H + 1, W + 1)
    (top, bottom), (left, right) = rows, columns
    counts = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    return np.asarray(counts > 0.5)


@lru_cache(maxsize=32)
def _decoded(png: bytes) -> Bools:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        if max(image.size) > LARGEST_SIDE:  # before it is decoded: a small file can say that it is huge
            raise OSError(f"the image is {image.width}x{image.height} pixels")
        mask = np.array(image.convert("1"))
    mask.flags.writeable = False  # it is shared
    return mask
