"""The pictures of an evaluation. Figures are built directly, without pyplot's process-wide state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from models.calibration import OperatingPoint

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

GOOD_COLOUR, DEFECTIVE_COLOUR, THRESHOLD_COLOUR = "#2a7f62", "#c0392b", "#222222"
MASK_COLOUR = "#00e5ff"
HEAT_COLOURS = "inferno"
HEAT_OPACITY = 0.65  # at the threshold and above; less below, so that a good part stays recognisable
COLOUR_SCALE = 2.0  # the colours end at this multiple of the pixel threshold
BINS = 40
TILE_INCHES = 2.2
TILE_SIDE = 0.97  # of the unit that each takes on the sheet
LINE_HEIGHT = 0.08  # of text, in the same unit
ROW_HEIGHT = 2 + 5 * LINE_HEIGHT  # image, heatmap, heading and titles


@dataclass(frozen=True)
class Tile:
    """One image of the sheet, all in the pixels of the detector's input.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W), True where defective.
        anomaly_map: (H, W).
        title: what stands above it, in one or two lines.
    """

    image: NDArray[np.uint8]
    mask: Bools
    anomaly_map: Floats
    title: str


def roc_plot(labels: Bools, scores: Floats, operating_point: OperatingPoint, title: str) -> Figure:
    """The ROC curve over images, with the operating point on it.

    Args:
        labels: (N,), True where defective; both kinds present.
        scores: (N,) image scores.
        operating_point: its image threshold is marked.
        title: of the figure.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    called = scores > operating_point.image_threshold
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle=":")
    axes.plot(false_positive_rate, true_positive_rate, color=DEFECTIVE_COLOUR)
    axes.plot(
        [float(called[~labels].mean())],
        [float(called[labels].mean())],
        "o",
        color=THRESHOLD_COLOUR,
        clip_on=False,
        label=f"threshold {operating_point.image_threshold:.4g}",
    )
    axes.set(xlabel="good images rejected", ylabel="defective images found", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(title)
    axes.legend(loc="lower right")
    return figure


def score_histogram(labels: Bools, scores: Floats, operating_point: OperatingPoint, title: str) -> Figure:
    """Image scores of good and of defective images, with the threshold and the review band.

    Args:
        labels: (N,), True where defective; one kind may be missing.
        scores: (N,) image scores.
        operating_point: where the decision lies.
        title: of the figure.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(np.append(scores, operating_point.image_threshold), BINS)
    for kind, colour, chosen in (("good", GOOD_COLOUR, ~labels), ("defective", DEFECTIVE_COLOUR, labels)):
        if chosen.any():
            axes.hist(
                scores[chosen], edges.tolist(), color=colour, alpha=0.6, label=f"{kind} ({np.count_nonzero(chosen)})"
            )
    if operating_point.review_band is not None:
        axes.axvspan(*operating_point.review_band, color="#999999", alpha=0.3, label="review")
    axes.axvline(operating_point.image_threshold, color=THRESHOLD_COLOUR, linestyle="--", label="threshold")
    axes.set(xlabel="image score (higher is more anomalous)", ylabel="images")
    axes.set_title(title)
    axes.legend()
    return figure


def sheet(rows: Sequence[tuple[str, Sequence[Tile]]], pixel_threshold: float, title: str) -> Figure:
    """Rows of images with the ground truth's outline, each above itself under its heatmap.

    The colours are those of every sheet of this operating point: multiples of the pixel threshold, never an image's own
    range, so that two parts can be compared by eye.

    Args:
        rows: heading and tiles of each row; rows without tiles are left out.
        pixel_threshold: one on the colour scale.
        title: of the figure.
    """
    rows = [(heading, tiles) for heading, tiles in rows if tiles]
    columns = max(len(tiles) for _, tiles in rows)
    figure = Figure(
        figsize=(TILE_INCHES * columns + 1.1, TILE_INCHES * ROW_HEIGHT * len(rows) + 0.5), layout="constrained"
    )
    axes = figure.subplots()  # one for all tiles, each a unit wide: an axes apiece takes seconds to draw
    axes.set(xlim=(0, columns), ylim=(ROW_HEIGHT * len(rows), 0), aspect="equal", title=title)
    axes.set_axis_off()
    # Sorted, for densities whose scores are negative: the scale ends at twice the threshold, or begins there.
    low, high = sorted((0.0, COLOUR_SCALE * pixel_threshold))
    scale = ScalarMappable(Normalize(low, high), HEAT_COLOURS)
    for row, (heading, tiles) in enumerate(rows):
        bottom = ROW_HEIGHT * (row + 1)
        axes.text(0, bottom - 2 - 2.5 * LINE_HEIGHT, heading, fontsize=9, weight="bold")
        for column, tile in enumerate(tiles):
            # File names, which may be no UTF-8 and may hold the dollars that begin a formula.
            title = tile.title.encode(errors="replace").decode()
            axes.text(column, bottom - 2 - LINE_HEIGHT / 3, title, fontsize=7, linespacing=1.1, parse_math=False)
            _draw(axes, tile.image, tile.mask, column, bottom - 2)
            _draw(axes, _overlay(tile, scale, low, pixel_threshold), tile.mask, column, bottom - 1)
    bar = figure.colorbar(scale, ax=axes, shrink=0.4, aspect=30)
    bar.set_label("anomaly map, in multiples of the pixel threshold")
    ticks = np.linspace(low, high, 5)
    bar.set_ticks(ticks.tolist(), labels=[f"{tick / pixel_threshold if pixel_threshold else 0:.1f}" for tick in ticks])
    return figure


def _overlay(tile: Tile, scale: ScalarMappable, low: float, threshold: float) -> NDArray[np.float64]:
    """The heatmap over the image in grey, its opacity growing up to the threshold."""
    grey = np.repeat(tile.image.mean(axis=2, keepdims=True), 3, axis=2) / 255
    colours = scale.to_rgba(tile.anomaly_map)[..., :3]
    reach = (threshold - low) or 1.0
    opacity = HEAT_OPACITY * np.clip((tile.anomaly_map - low) / reach, 0, 1)[..., np.newaxis]
    blended: NDArray[np.float64] = np.clip((1 - opacity) * grey + opacity * colours, 0, 1)
    return blended


def _draw(axes: Axes, image: NDArray[Any], mask: Bools, left: float, top: float) -> None:
    """One picture with the mask's outline, in the unit square at (left, top)."""
    axes.imshow(image, extent=(left, left + TILE_SIDE, top + TILE_SIDE, top))
    if mask.any() and not mask.all():
        rows, columns = (TILE_SIDE * (np.arange(length) + 0.5) / length for length in mask.shape)
        axes.contour(left + columns, top + rows, mask, levels=[0.5], colors=MASK_COLOUR, linewidths=0.8)
