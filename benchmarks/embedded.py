"""What a detector makes of a category's images, kept on disk: the ground on which studies of densities compare.

A study's folder has one folder a category, and may be interrupted at any time:

    study.json       which detector, and how many test images
    bank.npy         the embedding of every window of every image that the detector was fitted on (N, D)
    test.npy         those of the test images (n, h * w, D)
    cells/<name>.json    a line of the study each, once it is finished
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.densities.kernel import StreamedGamma
from models.densities.stream import HeldEmbeddings
from models.detector import Detector
from models.heatmap import peak_window
from models.store_files import write_file
from training.bootstrap import Wins
from training.data import GOOD, DataError, Dataset, load_images, load_mask, open_dataset
from training.evaluation import shown_pixels
from training.fit import FitConfiguration, WindowStream

MAPS = 16  # upsampled together
Floats = NDArray[np.float32]


class Outcome(NamedTuple):
    """How one way of scoring ranks images and pixels."""

    image: Wins
    pixel: Wins


class Embedded:
    """The embeddings of a category's images by the first member of a detector.

    Args:
        detector: as it was loaded from a store.
        data: folder of data sets, as ``open_dataset`` takes it.
        folder: where the embeddings are kept; made if missing.
        limit: at most so many test images, at even distances; None for all.
        part: of the windows of good images only about so many, drawn at random; None for all.
        settings: what else the cells in the folder depend on.

    Raises:
        DataError: the folder belongs to another detector, number of images or settings.

    Attributes:
        bank: (N, D) of the good images that the detector was fitted on, on disk.
        test: (n, h * w, D), likewise.
        labels: (n,), True where defective.
        device: the scan's, for densities too.
    """

    def __init__(
        self,
        detector: Detector,
        data: Path,
        folder: Path,
        limit: int | None = None,
        part: int | None = None,
        **settings: str,
    ) -> None:
        self.detector, self.folder = detector, folder
        self.scan = detector.scan.members[0]
        self.device = self.scan.device
        self.geometry = detector.geometry
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        digest = detector.manifest.digest if detector.manifest else None
        self._claim({"detector": digest, "limit": limit, "part": part, **settings})
        dataset = open_dataset(data, detector.category)
        samples = dataset.test if limit is None else dataset.test[:: -(-len(dataset.test) // limit)]
        shown = load_images(
            [sample.path for sample in samples],
            size=self.geometry.image_size,
            mode=self.scan.configuration.resize,
        )
        self.images, self.placements = shown.images, shown.placements
        self.masks = np.stack(
            [load_mask(sample, placement) for sample, placement in zip(samples, self.placements, strict=True)]
        )
        self.labels = np.array([sample.defect != GOOD for sample in samples])
        if (self.labels & ~self.masks.any(axis=(1, 2))).any():
            raise DataError(f"{dataset.root}: a study of pixels needs the ground truth of every defective image")
        windows = self.geometry.grid_size**2
        self.test = self._kept("test", lambda: shown.images).reshape(len(samples), windows, -1)
        self.bank = self._kept("bank", lambda: self._fitted_on(dataset), part)

    def _claim(self, identity: dict[str, Any]) -> None:
        path = self.folder / "study.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else identity
        if found != identity:
            raise DataError(f"{self.folder} belongs to {found}, not to {identity}; name another folder (--out)")
        write_file(path, json.dumps(identity) + "\n")

    def _fitted_on(self, dataset: Dataset) -> NDArray[np.uint8]:
        """The good images that the detector was fitted on, as ``fit`` chose them: (N, S, S, 3)."""
        good = load_images(dataset.train, size=self.geometry.image_size, mode=self.scan.configuration.resize)
        good = good.without_copies()
        return good.images[~FitConfiguration.model_validate(self.detector.training["fit"]).held_out(good.paths)]

    def _kept(self, name: str, images: Callable[[], NDArray[np.uint8]], size: int | None = None) -> Floats:
        """Embeddings of about ``size`` windows of images, or of all, from disk where they are there already."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            stream, row = WindowStream(self.scan, images(), size, seed=0), 0
            partial = path.with_suffix(".partial")
            array = np.lib.format.open_memmap(partial, "w+", np.float32, (stream.count, stream.dimension))
            for embeddings in stream:
                array[row : row + len(embeddings)] = embeddings.cpu().numpy()
                row += len(embeddings)
            array.flush()
            partial.rename(path)
        # Copy on write: a tensor may be made of it, and what is on disk stays.
        kept: Floats = np.load(path, mmap_mode="c")
        return kept

    @cached_property
    def gamma(self) -> float:
        """The paper's, of the whole bank: all densities that are compared share it."""
        return float(self.cell("gamma", lambda: {"gamma": _gamma(self.bank)})["gamma"])

    @cached_property
    def shown(self) -> NDArray[np.bool_] | None:
        """The pixels that show the images and not padding; None where all do."""
        return shown_pixels(self.placements) if self.scan.configuration.resize == "letterbox" else None

    def score_maps(self, density: Callable[[Tensor], Tensor]) -> Floats:
        """What a density says of the test images, anomalous upwards: of its scores of (n, D), (n, h, w)."""
        side = self.geometry.grid_size
        with torch.inference_mode():
            maps = [-density(torch.from_numpy(queries).to(self.device)).cpu().numpy() for queries in self.test]
        return np.stack(maps).reshape(-1, side, side)

    def outcome(self, score_maps: Floats) -> Outcome:
        """How score maps (n, h, w) of the test images rank images and pixels."""
        parts = torch.split(torch.from_numpy(score_maps).to(self.device), MAPS)
        maps = np.concatenate([self.scan.upsample(part).cpu().numpy() for part in parts])
        peaks = np.array(
            [
                score_map[peak_window(score_map, self.geometry, placement.content)]
                for score_map, placement in zip(score_maps, self.placements, strict=True)
            ]
        )
        return Outcome(Wins.of_images(self.labels, peaks), Wins.of_pixels(maps, self.masks, self.shown))

    def cell(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was kept under a name, or else is made now, and kept."""
        path = self.folder / "cells" / f"{name}.json"
        if not path.exists():
            write_file(path, json.dumps(make()) + "\n")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def _gamma(bank: Floats) -> float:
    streamed = StreamedGamma()
    for part in HeldEmbeddings(torch.from_numpy(bank)):
        streamed.seeing(part)
    return streamed.value()


def study_parser(description: str | None, folder: str, **models: Any) -> argparse.ArgumentParser:
    """The arguments that every study has.

    Args:
        folder: where it keeps what is finished, if nothing else is said.
        models: more of ``--models``, as ``add_argument`` takes it.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", nargs="+", metavar="CATEGORY")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of data sets")
    parser.add_argument("--models", type=Path, required=True, **models)
    parser.add_argument("--out", type=Path, default=Path(folder), help="what is finished (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="most test images of a category, taken at even distances")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser


def find_data(folders: Sequence[Path], category: str) -> Path:
    """The first of the folders of data sets that has a category.

    Raises:
        DataError: none has.
    """
    for folder in folders:
        if (folder / category).is_dir():
            return folder
    raise DataError(f"{category} is in none of {', '.join(map(str, folders))}")


def points(share: float) -> float:
    """A share in points, to the thousandth; what is not a number stays."""
    return round(100 * share, 3) if math.isfinite(share) else share


def change(line: Mapping[str, Any], kind: str) -> str:
    """A change of AUROC with its interval, in points."""
    low, high = line[f"{kind}_change_interval"]
    return f"{line[f'{kind}_change']:+.2f} ({low:+.2f} to {high:+.2f})"
