"""Pictures of a prediction and of its explanation: pure functions from arrays to PNG bytes.

The colour scale of a prediction is the category's, fixed in multiples of its pixel threshold, so that two parts compare
by eye: turbo from SCALE_START to SCALE_END times the threshold. Nothing is drawn below its start, and its last colour
stands for all above its end.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import Image

from models.prediction import Prediction
from models.region_of_interest import RegionOfInterest

if TYPE_CHECKING:
    from models.explanation import Explanation  # whose library is slow to load, and drawing does not need it

SCALE_START, SCALE_END = 0.8, 1.3  # log densities lie close together: beyond these, all parts look alike
DEFAULT_OPACITY = 0.5

_CODES = 65535  # of a 16-bit image
_OUTLINE = (255, 255, 255)
_LOWERS_OR_RAISES = np.array([(255, 0, 0), (0, 0, 255)], np.uint8)  # BGR
_FULL_COLOUR_QUANTILE = 0.99
_OUTLINE_SHARE = 0.003  # of the longer side: visible when the image is scaled down to a screen


@dataclass(frozen=True)
class RawMap:
    """A 16-bit grayscale PNG of an anomaly map: value = minimum + code * step."""

    png: bytes
    minimum: float
    step: float


def colour_scale(pixel_threshold: float) -> tuple[float, float]:
    """The anomaly map's values at the start and at the end of the colour scale; a threshold below 0 keeps the order."""
    magnitude = abs(pixel_threshold) or 1.0
    return pixel_threshold - (1 - SCALE_START) * magnitude, pixel_threshold + (SCALE_END - 1) * magnitude


def render_overlay(
    image: NDArray[np.uint8],
    prediction: Prediction,
    pixel_threshold: float,
    opacity: float = DEFAULT_OPACITY,
    region: RegionOfInterest | None = None,
) -> bytes:
    """Draw the anomaly map over the original image, and a white line around each region.

    Args:
        image: (H, W, 3) uint8 RGB, the original that was scored.
        prediction: of that image.
        pixel_threshold: of the operating point that made the prediction's regions.
        opacity: of the colours, 0 (the image alone) to 1.
        region: of interest; what lies outside has no colour.

    Returns:
        A PNG of the original's size.
    """
    picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if opacity > 0:
        _lay_over(picture, prediction, pixel_threshold, opacity, region)
        _outline(picture, [[(point.x, point.y) for point in region.contour] for region in prediction.regions])
    return encode_png(picture)


def render_explanation(image: NDArray[np.uint8], explanation: Explanation, opacity: float = DEFAULT_OPACITY) -> bytes:
    """Draw the attributions over the original image, and a white line around the window that the score is of.

    Red raises the score, blue lowers it, the stronger the more. The scale is the explanation's own (``full_colour``):
    attributions add up to a score within one image and do not compare between two.

    Args:
        image: (H, W, 3) uint8 RGB, the original that was explained.
        explanation: of that image.
        opacity: of the strongest colours, 0 (the image alone) to 1.

    Returns:
        A PNG of the original's size.
    """
    picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if opacity > 0:
        _blend(picture, explanation, opacity)
        box = explanation.prediction.placement.to_original_box(explanation.window)
        right, bottom = box.x + box.width - 1, box.y + box.height - 1
        _outline(picture, [[(box.x, box.y), (right, box.y), (right, bottom), (box.x, bottom)]])
    return encode_png(picture)


def full_colour(explanation: Explanation) -> float:
    """The size of an attribution from which on its colour is full: a single pixel shall not make all others pale."""
    sizes = np.abs(explanation.attributions[explanation.attributions != 0])
    return float(np.quantile(sizes, _FULL_COLOUR_QUANTILE)) if sizes.size else 0.0


def render_raw(anomaly_map: NDArray[np.float32]) -> RawMap:
    """Store an anomaly map as an image, from its own minimum to its own maximum, to within half a step.

    Args:
        anomaly_map: (H, W) float32, at the resolution that the detector computed: not interpolated to the original.
    """
    values = anomaly_map.astype(np.float64)
    minimum = float(values.min())
    step = (float(values.max()) - minimum) / _CODES
    codes = np.rint((values - minimum) / step) if step > 0 else np.zeros(values.shape)
    return RawMap(png=encode_png(codes.astype(np.uint16)), minimum=minimum, step=step)


def render_mask(
    prediction: Prediction, pixel_threshold: float, colour: int, region_of_interest: RegionOfInterest | None = None
) -> tuple[bytes, float]:
    """Draw what the regions cover, in one colour on white.

    Args:
        colour: 0xRRGGBB.
        region_of_interest: what lies outside has no colour, unless it is of the peak window.

    Returns:
        A PNG of the original's size, and the share of its pixels that have the colour.
    """
    placement = prediction.placement
    inside = np.zeros((placement.original_height, placement.original_width), np.uint8)
    above = placement.map_to_original(prediction.anomaly_map) > pixel_threshold
    if region_of_interest is not None:
        above &= region_of_interest.over(*above.shape)
    for region in prediction.regions:
        box = region.box
        rows, columns = slice(box.y, box.y + box.height), slice(box.x, box.x + box.width)
        contour = np.array([(point.x - box.x, point.y - box.y) for point in region.contour])
        area = np.zeros((box.height, box.width), np.uint8)
        cv2.fillPoly(area, [contour], 1)
        if (deviating := area & above[rows, columns]).any():  # nothing is above where the region is the peak window
            area = deviating
        inside[rows, columns] |= area
    picture = Image.fromarray(inside, "P")
    picture.putpalette([255, 255, 255, *colour.to_bytes(3)])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), float(inside.mean())


# The two below change arrays in place, and end before the PNG is made: of the largest image that is accepted one array
# of numbers takes a quarter of a gigabyte.


def _lay_over(
    picture: MatLike, prediction: Prediction, pixel_threshold: float, opacity: float, region: RegionOfInterest | None
) -> None:
    start, end = colour_scale(pixel_threshold)
    values = prediction.placement.map_to_original(prediction.anomaly_map)
    drawn = (values >= start).view(np.uint8)
    if region is not None:
        drawn &= region.over(*values.shape)
    values -= start
    values /= end - start
    np.clip(values, 0, 1, out=values)
    values *= 255
    codes = values.astype(np.uint8)
    del values
    colours = cv2.applyColorMap(codes, cv2.COLORMAP_TURBO)
    cv2.addWeighted(picture, 1 - opacity, colours, opacity, 0, dst=colours)
    cv2.copyTo(colours, drawn, picture)


def _blend(picture: MatLike, explanation: Explanation, opacity: float) -> None:
    strength = explanation.prediction.placement.map_to_original(explanation.attributions)
    colours = _LOWERS_OR_RAISES[(strength > 0).view(np.uint8)]
    np.abs(strength, out=strength)
    strength /= full_colour(explanation) or 1
    np.minimum(strength, 1, out=strength)
    strength *= opacity
    cv2.blendLinear(picture, colours, 1 - strength, strength, dst=picture)


def _outline(picture: MatLike, contours: Sequence[Sequence[tuple[int, int]]]) -> None:
    thickness = max(1, round(_OUTLINE_SHARE * max(picture.shape[:2])))
    polygons = [np.array(contour) for contour in contours]
    cv2.polylines(picture, polygons, isClosed=True, color=_OUTLINE, thickness=thickness)


def encode_png(picture: MatLike, options: Sequence[int] = ()) -> bytes:
    """A PNG of (H, W) or (H, W, 3) BGR pixels; ``options`` are those of ``cv2.imencode``."""
    encoded, png = cv2.imencode(".png", picture, options)
    if not encoded:
        raise RuntimeError(f"OpenCV could not encode an image of shape {picture.shape}")
    return png.tobytes()
