"""Whether an image shows the product at all: another part, a blank frame or a lens cap is no good part and no bad one.

A patch of a plain frame may look as normal as the plain parts of good images, so the image is looked at as a whole, in
two ways: the mean of its embeddings, which knows its colours and textures, and the layout of its edges, which does not
depend on the encoder and little on the light. An image that is far from good ones in either does not show the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

VALIDITY_FILE = "validity.safetensors"
BLANK_LEVELS = (0, 64, 128, 192, 255)
SENSOR_NOISE = 4.0  # standard deviation, in 8-bit grey levels: a covered lens is not quite black
TOWARDS_BLANK = 2 / 3  # where a threshold lies on the way from good images to blank ones, in logarithms
SMALLEST_DISTANCE = 1e-3  # good images that differ by less are taken to differ by this much

LAYOUT_SIDE = 64  # pixels to which an image is averaged before its edges are looked at, which averages noise as well
LAYOUT_CELLS = 4  # along a side
LAYOUT_DIRECTIONS = 8  # of edges, over half a turn
LAYOUT_DIMENSION = LAYOUT_CELLS**2 * LAYOUT_DIRECTIONS + 1
_FAINT = 0.5  # grey levels a pixel: a mean gradient below it is more noise than layout
_CONTRAST_WEIGHT = 0.25  # of the logarithm of the contrast beside the layout, whose length is at most 1

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Validity:
    """Distances of images to good ones, and those from which on an image does not show the product.

    Attributes:
        references: (n, D) summaries of good images, of those that the density has learned from.
        thresholds: for the embeddings and for the layout; an image further away in either is invalid.
        calibration_images: of which none is further away in either: the false-alarm rate is at most
            1 / (calibration_images + 1).
        blank_share: of the blank frames of ``fit``, those that it tells from good images.
    """

    references: Floats
    thresholds: tuple[float, float]
    calibration_images: int
    blank_share: float

    @classmethod
    def fit(cls, references: Floats, calibration: Floats, blank: Floats) -> Self:
        """Set the thresholds between good images and blank frames, but never below a good image.

        The larger of the two distances, each in multiples of what good images are apart, is one score; split conformal:
        a threshold at the highest score of n calibration images has a false-alarm rate of at most 1 / (n + 1). Each
        distance's threshold is moved on from there towards the blank frames, so that a gross defect, which moves the
        whole image's summary as well, is not taken for another product.

        Args:
            references: (n, D) summaries of good images; of one alone both distances count alike.
            calibration: (m, D) of good images that nothing else has touched.
            blank: (b, D) of frames that show nothing.
        """
        scales = np.maximum(_apart(references), SMALLEST_DISTANCE)
        good = scales * max(1e-6, float((distances(references, calibration) / scales).max()))
        to_blank = distances(references, blank)
        moved = good ** (1 - TOWARDS_BLANK) * to_blank.min(axis=0) ** TOWARDS_BLANK
        embeddings, layout = np.maximum(good, moved).tolist()
        made = cls(references, (embeddings, layout), len(calibration), 0.0)
        told = float(np.mean([made.invalidity(summary) > 1 for summary in blank]))
        return cls(references, made.thresholds, len(calibration), told)

    def invalidity(self, summary: Floats) -> float:
        """How far an image is from the good ones, in multiples of a threshold: above 1 it does not show the product.

        Args:
            summary: (D,) as ``summarise`` makes it.
        """
        return float((distances(self.references, summary[None])[0] / np.array(self.thresholds)).max())

    def facts(self) -> dict[str, float]:
        """Its numbers, ready for JSON."""
        return {
            "false_alarm_rate_at_most": 1 / (self.calibration_images + 1),
            "blank_frames_told": self.blank_share,
            "embedding_threshold": self.thresholds[0],
            "layout_threshold": self.thresholds[1],
        }

    def save(self, folder: Path) -> None:
        """Write it into ``folder``."""
        numbers = np.array([*self.thresholds, self.calibration_images, self.blank_share], np.float64)
        save_file({"references": np.ascontiguousarray(self.references), "numbers": numbers}, folder / VALIDITY_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What ``save`` wrote.

        Raises:
            OSError, SafetensorError, KeyError, ValueError: it is not there or not whole.
        """
        arrays = load_file(folder / VALIDITY_FILE)
        embeddings, layout, calibration_images, blank_share = arrays["numbers"].tolist()
        return cls(arrays["references"], (embeddings, layout), int(calibration_images), blank_share)


def summarise(pixels: Tensor, embeddings: Tensor) -> Tensor:
    """What ``Validity`` compares images by: the mean of the embeddings, then the layout.

    Args:
        pixels: (B, 3, S, S) in [0, 1].
        embeddings: (B, D, h, w), unit-norm.

    Returns:
        (B, D + LAYOUT_DIMENSION).
    """
    return torch.cat([embeddings.mean(dim=(2, 3)), layout(pixels)], dim=1)


def mean_embedding(summaries: Floats) -> Floats:
    """Of what ``summarise`` gave, (..., D + LAYOUT_DIMENSION), the mean embeddings (..., D)."""
    return summaries[..., :-LAYOUT_DIMENSION]


def layout(pixels: Tensor) -> Tensor:
    """Where in an image edges run in which direction, as shares of all there are, and how strong they are.

    Histograms of oriented gradients (Dalal, Triggs, CVPR 2005) over a few large cells, as square roots of shares, so
    that the light does not matter; they fade where the gradients are faint, and a flat frame has none. The last value
    is the logarithm of the mean gradient over the mean brightness.

    Args:
        pixels: (B, 3, S, S) in [0, 1].

    Returns:
        (B, LAYOUT_DIMENSION).
    """
    grey = 255 * F.adaptive_avg_pool2d(pixels.mean(dim=1, keepdim=True), LAYOUT_SIDE)
    around = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = (around[:, :, 1:-1, 2:] - around[:, :, 1:-1, :-2]) / 2
    down = (around[:, :, 2:, 1:-1] - around[:, :, :-2, 1:-1]) / 2
    strength = torch.hypot(across, down)
    direction = torch.atan2(down, across) * LAYOUT_DIRECTIONS / torch.pi  # in bins; half a turn on it is the same edge
    bins = torch.arange(LAYOUT_DIRECTIONS, device=pixels.device).view(1, -1, 1, 1)
    away = (direction - bins + LAYOUT_DIRECTIONS / 2) % LAYOUT_DIRECTIONS - LAYOUT_DIRECTIONS / 2
    shared = strength * (1 - away.abs()).clamp_min(0)  # (B, directions, side, side): between the two nearest bins
    cells = F.adaptive_avg_pool2d(shared, LAYOUT_CELLS).flatten(1)
    shares = (cells / (cells.sum(dim=1, keepdim=True) + _FAINT * LAYOUT_CELLS**2)).sqrt()
    contrast = torch.log((strength.mean(dim=(1, 2, 3)) + 0.1 * _FAINT) / (grey.mean(dim=(1, 2, 3)) + SENSOR_NOISE))
    return torch.cat([shares, _CONTRAST_WEIGHT * contrast[:, None]], dim=1)


def distances(references: Floats, queries: Floats) -> NDArray[np.float64]:
    """Euclidean distances of each query (m, D) to the nearest reference (n, D), by embedding and by layout: (m, 2)."""
    return np.array([np.sqrt(_squared(references, query).min(axis=0)) for query in queries])


def blank_frames(size: int, colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Frames that show nothing: plain greys and the colour that good images have on average, each also with noise.

    Args:
        size: side of the square input.
        colour: (3,) mean of good images.

    Returns:
        (b, size, size, 3).
    """
    random = np.random.default_rng(0)
    frames = []
    for level in (*((grey, grey, grey) for grey in BLANK_LEVELS), tuple(colour)):
        plain = np.broadcast_to(np.array(level, np.float64), (size, size, 3))
        frames += [plain, plain + random.normal(0, SENSOR_NOISE, plain.shape)]
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _squared(references: Floats, query: Floats) -> NDArray[np.float64]:
    """Squared distances of one query to every reference, by embedding and by layout: (n, 2)."""
    squares = np.square(references - query, dtype=np.float64)
    return np.stack([part.sum(axis=1) for part in np.split(squares, [-LAYOUT_DIMENSION], axis=1)], axis=1)


def _apart(references: Floats) -> NDArray[np.float64]:
    """The largest distance of a reference to the nearest other one, by embedding and by layout: (2,), 0 for one."""
    if len(references) == 1:
        return np.zeros(2)
    nearest = [
        _squared(np.delete(references, number, axis=0), reference).min(axis=0)
        for number, reference in enumerate(references)
    ]
    return np.asarray(np.sqrt(np.max(nearest, axis=0)))
