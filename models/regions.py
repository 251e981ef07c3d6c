"""Connected areas of an anomaly map above the pixel threshold, in pixels of the original image."""

from __future__ import annotations

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from models.geometry import Box, ScanGeometry
from models.images import Placement
from models.prediction import Point, Region
from models.region_of_interest import RegionOfInterest

MAX_REGIONS = 100  # of one image; a noisy map can have thousands, which nobody looks at and every answer would carry


def find_regions(
    anomaly_map: NDArray[np.float32], threshold: float, placement: Placement, inside: RegionOfInterest | None = None
) -> tuple[Region, ...]:
    """8-connected areas above ``threshold``, the highest peak first.

    Args:
        anomaly_map: (H, W) of the detector's input.
        threshold: the pixel threshold.
        placement: where the original image lies in that input.
        inside: areas end where this does.

    Returns:
        One region an area, in pixels of the original image as displayed; of more than ``MAX_REGIONS`` areas, those with
        the highest peaks.
    """
    original = placement.map_to_original(anomaly_map)
    above = original > threshold
    if inside is not None:
        above &= inside.over(*original.shape)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, labels[above].astype(np.int32, copy=False), original[above])
    highest = 1 + np.argsort(-peaks[1:], kind="stable")[:MAX_REGIONS]  # label 0 is what lies below
    return tuple(_region(original, labels, int(label), statistics[label]) for label in highest)


def peak_region(
    window: tuple[int, int], anomaly_map: NDArray[np.float32], geometry: ScanGeometry, placement: Placement
) -> Region:
    """The window with the highest score, for a defective image whose anomaly map stays below the pixel threshold."""
    i, j = window
    box = placement.to_original_box(geometry.window(i, j))
    row, column = geometry.center(i, j)
    x, y = placement.point_to_original(column, row)
    corners = [(box.x, box.y), (box.x + box.width - 1, box.y)]
    corners += [(box.x + box.width - 1, box.y + box.height - 1), (box.x, box.y + box.height - 1)]
    return Region(
        box=box,
        area=box.width * box.height,
        peak=Point(x=min(max(round(x), box.x), corners[2][0]), y=min(max(round(y), box.y), corners[2][1])),
        peak_score=float(anomaly_map[round(row), round(column)]),
        contour=tuple(Point(x=x, y=y) for x, y in corners),
    )


def _region(original: NDArray[np.float32], labels: MatLike, label: int, row: MatLike) -> Region:
    left, top, width, height, area = (int(value) for value in row)
    inside = labels[top : top + height, left : left + width] == label
    values = np.where(inside, original[top : top + height, left : left + width], -np.inf)
    peak_y, peak_x = np.unravel_index(int(values.argmax()), values.shape)
    [contour], _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
    )
    return Region(
        box=Box(x=left, y=top, width=width, height=height),
        area=area,
        peak=Point(x=left + int(peak_x), y=top + int(peak_y)),
        peak_score=float(values.max()),
        contour=tuple(Point(x=int(x), y=int(y)) for x, y in contour[:, 0]),
    )
