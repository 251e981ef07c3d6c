"""Where the windows of a scan lie: the only place that knows 256, 32, 4 and 57.

A scan slides a window of ``patch_size`` pixels over a square image at ``stride`` pixels. Window (i, j) (row, column)
covers the pixels ``[stride * i, stride * i + patch_size)`` by ``[stride * j, stride * j + patch_size)``, so its centre
lies at ``(patch_size - 1) / 2 + stride * i`` in coordinates where 0 is the centre of the first pixel.
Source: Sohn et al., ICLR 2021, sections 4.2 and B.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:  # reading a manifest needs no NumPy
    from numpy.typing import NDArray

_Array = TypeVar("_Array", bound="NDArray[Any]")


class Box(BaseModel):
    """An axis-aligned rectangle of whole pixels; ``x`` and ``y`` are its first column and row."""

    model_config = ConfigDict(frozen=True)

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    width: int = Field(gt=0)
    height: int = Field(gt=0)

    def crop(self, values: _Array) -> _Array:
        """The rectangle of an array (rows, columns, ...); a view."""
        return values[self.y : self.y + self.height, self.x : self.x + self.width]  # type: ignore[return-value]


class ScanGeometry(BaseModel):
    """The geometry of a dense scan.

    Args:
        image_size: side of the square image that is scanned, in pixels.
        patch_size: side of a window, in pixels.
        stride: distance between neighbouring windows, in pixels.

    Raises:
        ValueError: if a value is not positive or the patch is larger than the image.
    """

    model_config = ConfigDict(frozen=True)

    image_size: int = Field(default=256, gt=0)
    patch_size: int = Field(default=32, gt=0)
    stride: int = Field(default=4, gt=0)

    @model_validator(mode="after")
    def _patch_fits(self) -> ScanGeometry:
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size {self.patch_size} is larger than image_size {self.image_size}")
        return self

    @property
    def square(self) -> Box:
        """The whole input: what an image covers that is not letter-boxed."""
        return Box(x=0, y=0, width=self.image_size, height=self.image_size)

    @property
    def grid_size(self) -> int:
        """Windows along one side of the image (57 in the paper)."""
        return self.windows(self.image_size)

    @property
    def unscanned(self) -> int:
        """Pixels at the right and at the bottom edge that no window covers."""
        return self.image_size - (self.patch_size + self.stride * (self.grid_size - 1))

    def windows(self, length: int) -> int:
        """Number of windows along an edge of ``length`` pixels; the geometry of a crop or of another image size."""
        if length < self.patch_size:
            raise ValueError(f"an edge of {length} pixels holds no window of {self.patch_size}")
        return (length - self.patch_size) // self.stride + 1

    def window(self, i: int, j: int) -> Box:
        """The pixels that window (row ``i``, column ``j``) covers."""
        if not (0 <= i < self.grid_size and 0 <= j < self.grid_size):
            raise IndexError(f"window ({i}, {j}) is outside the {self.grid_size}x{self.grid_size} grid")
        return Box(x=self.stride * j, y=self.stride * i, width=self.patch_size, height=self.patch_size)

    def center(self, i: int, j: int) -> tuple[float, float]:
        """Centre (y, x) of window (``i``, ``j``), 0 being the centre of the first pixel: (15.5 + 4i, 15.5 + 4j)."""
        offset = (self.patch_size - 1) / 2
        return offset + self.stride * i, offset + self.stride * j

    def windows_over(self, y: int, x: int) -> tuple[range, range]:
        """Rows and columns of the windows that cover pixel (``y``, ``x``); empty where nothing scans it."""
        return self._covering(y), self._covering(x)

    def windows_of(self, content: Box) -> tuple[range, range]:
        """Rows and columns of the windows that count for an image which covers ``content``: centred in it.

        Half a stride beyond counts as well, half the way to the next window, so that a letter-boxed image has a window
        however thin it lies. Any other window shows mostly padding, which repeats the image, defects and all.
        """
        return self._centred(content.y, content.height), self._centred(content.x, content.width)

    def _centred(self, start: int, length: int) -> range:
        reach = self.stride / 2
        inside = [
            k for k in range(self.grid_size) if start - reach <= self.center(k, k)[0] <= start + length - 1 + reach
        ]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def _covering(self, position: int) -> range:
        first = max(0, -((self.patch_size - 1 - position) // self.stride))
        last = min(self.grid_size - 1, position // self.stride)
        return range(first, last + 1)
