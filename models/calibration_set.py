"""What a calibration was made from, kept so that it can be made again without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from models.calibration import Calibration
from models.geometry import Box, ScanGeometry
from models.heatmap import GaussianUpsampler, peak_window
from models.region_of_interest import RegionOfInterest

CALIBRATION_FILE = "calibration.safetensors"


class Seen(Protocol):
    """What was seen in B inputs; ``models.scan.Look``."""

    @property
    def score_maps(self) -> NDArray[np.float32]: ...
    @property
    def anomaly_maps(self) -> NDArray[np.float32]: ...
    @property
    def summaries(self) -> NDArray[np.float32]: ...


class LooksAtImages(Protocol):
    """What looks at inputs (B, S, S, 3): a scan or an ensemble."""

    def look(self, images: NDArray[np.uint8]) -> Seen: ...


@dataclass(frozen=True)
class CalibrationSet:
    """The n calibration images and their scores.

    The score maps suffice to calibrate for other settings, such as a region of interest; the inputs, for another bank.

    Attributes:
        scores: the calibration as the detector was made with it.
        score_maps: (n, h, w) float32.
        summaries: (n, D) float32, as ``models.validity.summarise`` makes them.
        contents: where each image lies in its input.
        inputs: (n, S, S, 3) uint8, the images as they were scanned.

    Raises:
        ValueError: if the parts are not of one number of images.
    """

    scores: Calibration
    score_maps: NDArray[np.float32]
    summaries: NDArray[np.float32]
    contents: tuple[Box, ...]
    inputs: NDArray[np.uint8]

    def __post_init__(self) -> None:
        parts = (self.scores, self.score_maps, self.summaries, self.contents, self.inputs)
        if len({len(part) for part in parts}) > 1:
            raise ValueError(
                "a calibration set has scores, score maps, summaries, contents and inputs of "
                f"{', '.join(str(len(part)) for part in parts)} images"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def within(self, region: RegionOfInterest, geometry: ScanGeometry, sigma: float | None) -> Calibration:
        """The calibration that the same images give where only ``region`` counts, from their score maps.

        Args:
            geometry, sigma: of the detector's configuration.
        """
        upsample = GaussianUpsampler(geometry, sigma)
        scores, maxima = [], []
        for score_map, content in zip(self.score_maps, self.contents, strict=True):
            scores.append(score_map[peak_window(score_map, geometry, content, region)])
            anomaly_map = upsample(torch.from_numpy(score_map)[None])[0].numpy()
            maxima.append(content.crop(anomaly_map)[region.pixels(content)].max())
        return Calibration(np.asarray(scores, np.float64), np.asarray(maxima, np.float64))

    def save(self, folder: Path) -> None:
        """Write it into ``folder``."""
        boxes = [[box.x, box.y, box.width, box.height] for box in self.contents]
        arrays = {
            "image_scores": self.scores.image_scores,
            "map_maxima": self.scores.map_maxima,
            "score_maps": self.score_maps,
            "summaries": self.summaries,
            "contents": np.array(boxes, np.int64),
            "inputs": self.inputs,
        }
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, folder / CALIBRATION_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The set that ``save`` wrote.

        Raises:
            OSError, SafetensorError, KeyError, ValueError: it is not there or not whole.
        """
        arrays = load_file(folder / CALIBRATION_FILE)  # a copy: where a mapped file is cut short, reading it kills us
        return cls(
            Calibration(arrays["image_scores"], arrays["map_maxima"]),
            arrays["score_maps"],
            arrays["summaries"],
            tuple(Box(x=x, y=y, width=width, height=height) for x, y, width, height in arrays["contents"].tolist()),
            arrays["inputs"],
        )


def calibrate(
    scan: LooksAtImages, geometry: ScanGeometry, inputs: NDArray[np.uint8], contents: Sequence[Box]
) -> CalibrationSet:
    """Scan good images that neither the encoder nor the density has seen, one at a time.

    Args:
        scan: fitted.
        geometry: the scan's.
        inputs: (n, S, S, 3), placed images.
        contents: how each original lies in its input; a letter-box's padding does not count.
    """
    score_maps, summaries, scores, maxima = [], [], [], []
    for pixels, content in zip(inputs, contents, strict=True):
        seen = scan.look(pixels[None])
        [score_map], [anomaly_map] = seen.score_maps, seen.anomaly_maps
        score_maps.append(score_map)
        summaries.append(seen.summaries[0])
        scores.append(score_map[peak_window(score_map, geometry, content)])
        maxima.append(content.crop(anomaly_map).max())
    made = Calibration(np.asarray(scores, np.float64), np.asarray(maxima, np.float64))
    return CalibrationSet(made, np.stack(score_maps), np.stack(summaries), tuple(contents), inputs)
