"""What scenes are drawn with: coordinates, anti-aliased shapes, noise and layers.

Every length is in percent of the image's side, so a product looks the same at any image size; (0, 0) is the centre of
the image, x points right and y down. Shapes are signed distances, negative inside; coverage turns one into an opacity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]  # (H, W) one value per pixel, or (H, W, 3) a colour per pixel

Window = tuple[slice, slice]  # rows and columns of a cut-out

SIDE = 100.0
COARSE = 12  # pixels; noise whose features are larger is interpolated from a lattice, which is too visible in finer one
LATTICE_GAIN = 1.25  # interpolation between independent values makes them smaller


@dataclass(frozen=True)
class Frame:
    """Coordinates of every pixel's centre, as seen by something that may be moved and turned.

    Args:
        x: (H, W) in percent of the side.
        y: (H, W) in percent of the side.
        pixel: side of a pixel, in percent of the image's side.
    """

    x: Field
    y: Field
    pixel: float

    @staticmethod
    def of_image(size: int) -> Frame:
        """The frame of an upright image of ``size`` by ``size`` pixels."""
        axis = np.asarray(((np.arange(size) + 0.5) / size - 0.5) * SIDE, dtype=np.float32)
        x, y = np.meshgrid(axis, axis)
        return Frame(x, y, SIDE / size)

    @cached_property
    def radius(self) -> Field:
        return np.hypot(self.x, self.y)

    @cached_property
    def angle(self) -> Field:
        return np.arctan2(self.y, self.x)

    def moved(self, x: float, y: float, degrees: float) -> Frame:
        """The frame of a part that lies at (``x``, ``y``), turned clockwise by ``degrees``."""
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        turned_x = np.float32(cosine) * dx + np.float32(sine) * dy
        return Frame(turned_x, np.float32(cosine) * dy - np.float32(sine) * dx, self.pixel)

    def around(self, x: float, y: float, reach: float) -> tuple[Frame, Window]:
        """The cut-out within ``reach`` of (``x``, ``y``), which becomes its origin, and where it lies in the image."""
        nearest = int(np.argmin((self.x - np.float32(x)) ** 2 + (self.y - np.float32(y)) ** 2))
        margin = int(np.ceil(reach / self.pixel)) + 1
        rows, columns = (slice(max(0, at - margin), at + margin + 1) for at in divmod(nearest, self.x.shape[1]))
        return Frame(self.x[rows, columns], self.y[rows, columns], self.pixel).moved(x, y, 0), (rows, columns)

    def coverage(self, distance: Field) -> Field:
        """Opacity in [0, 1] of a shape given by its signed ``distance``, its edge one pixel wide."""
        return np.asarray(np.clip(0.5 - distance / np.float32(self.pixel), 0, 1), dtype=np.float32)


@dataclass(frozen=True)
class Layer:
    """Something that covers what lies below it, inside a window of the image.

    Args:
        colour: (h, w, 3) reflectance.
        alpha: (h, w) opacity in [0, 1].
        window: the rows and columns that it lies in; by default the whole image.
    """

    colour: Field
    alpha: Field
    window: Window = (slice(None), slice(None))


@dataclass(frozen=True)
class Scene:
    """A product before the camera.

    Args:
        base: (H, W, 3) reflectance in [0, 1] of everything but the parts.
        surface: (H, W) in [0, 1]: where scratches, holes and stains may lie.
        parts: what can be missing, in the order in which it is put on.
    """

    base: Field
    surface: Field
    parts: tuple[Layer, ...] = ()

    def reflectance(self, without: int | None = None) -> Field:
        """The complete product (H, W, 3), or the product without one of its parts."""
        image = self.base.copy()
        for index, part in enumerate(self.parts):
            if index != without:
                cover(image, part.colour, part.alpha, part.window)
        return image


def blend(below: Field, above: Field, alpha: Field) -> Field:
    """``above`` over ``below`` (H, W, 3) at the opacity ``alpha`` (H, W)."""
    opacity = alpha[..., None]
    return np.asarray(below + (above - below) * opacity, dtype=np.float32)


def cover(image: Field, colour: Field, alpha: Field, window: Window) -> None:
    """Blend into a window of ``image``, in place."""
    image[window] = blend(image[window], colour, alpha)


def tinted(shade: Field, colour: tuple[float, float, float]) -> Field:
    """A (H, W) ``shade`` as (H, W, 3) in a ``colour``."""
    return np.asarray(shade[..., None] * np.array(colour, dtype=np.float32), dtype=np.float32)


def box(frame: Frame, half_width: float, half_height: float, corner: float = 0.0) -> Field:
    """Signed distance to a rectangle around the frame's origin, its corners rounded."""
    dx = np.abs(frame.x) - np.float32(half_width - corner)
    dy = np.abs(frame.y) - np.float32(half_height - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return np.asarray(outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner), dtype=np.float32)


def noise(rng: np.random.Generator, size: int, period: float | tuple[float, float]) -> Field:
    """Smooth noise (H, W), mean near 0 and deviation near 1, whose features are ``period`` (y, x) percent across."""
    cells = np.broadcast_to(np.array(period), (2,)) * size / SIDE  # pixels a feature, vertically and horizontally
    if cells.max() < COARSE:
        sigma = np.maximum(cells / 3, 0.1)
        white = rng.standard_normal((size, size), dtype=np.float32)
        fine = cv2.GaussianBlur(white, (0, 0), float(sigma[1]), sigmaY=float(sigma[0]), borderType=cv2.BORDER_REFLECT)
        return np.asarray(fine / fine.std(), dtype=np.float32)
    rows, columns = (min(size, int(np.ceil(size / cell)) + 3) for cell in cells)
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    step_y, step_x = (min(1.0, float(1 / cell)) for cell in cells)
    corner_y, corner_x = rng.uniform(0.5, 1.5, size=2)  # the lattice lies elsewhere in every image
    lattice = np.array([[step_x, 0, corner_x], [0, step_y, corner_y]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    fine = cv2.warpAffine(coarse, lattice, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(fine * LATTICE_GAIN, dtype=np.float32)


def blurred(image: Field, deviation: float) -> Field:
    """``image`` after a Gaussian of ``deviation`` percent of the side."""
    sigma = deviation / SIDE * image.shape[0]
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), dtype=np.float32)
