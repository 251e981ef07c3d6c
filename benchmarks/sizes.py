"""Which size of ``DensePatch``, embedding dimension and bank keep what the largest finds, and what each costs.

python -m benchmarks.sizes bottle pill --data DATA --models small/models base/models large/models --out sizes --json

Every store holds detectors of the categories with an encoder of another width. The study sees the test images: its
figures do not measure a default that is chosen by it. Each line is kept when it is finished: run again, it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.compression import KINDS, Setting, areas, changed, fitted, say
from benchmarks.detectors import load_active
from benchmarks.embedded import Embedded, change, find_data, points, study_parser
from benchmarks.machine import machine
from models.allocator import keep_freed_memory
from models.configuration import DetectorConfiguration
from models.densities import KernelDensity, KernelDensityConfiguration
from models.detector import Detector
from models.device import resolve_device, set_threads
from models.encoders import DensePatchConfiguration, create_encoder
from models.inference import InferencePlan
from models.scan import Scan
from models.timing import interleave
from training.bootstrap import resampled
from training.reproduction.report import aligned

PART = 131_072  # windows of the good images that banks are made of
BANK = 4096  # embeddings of an exact bank, which all is timed against
CENTRES = (1024, 2048, 4096)
DIMENSIONS = (0, 128, 96, 64, 32)
TOLERATED = 0.5  # points of image and of pixel AUROC
ROUNDS = 7


class Candidate(NamedTuple):
    """A width with a density on it."""

    width: int
    setting: Setting

    @property
    def title(self) -> str:
        """How it is called in the results."""
        size = DensePatchConfiguration(width=self.width).size
        return f"{size or f'width-{self.width}'}-{self.setting.title}"


def settings(centres: Sequence[int], dimensions: Sequence[int]) -> list[Setting]:
    """The densities that are studied on every width."""
    compressed = [Setting("compressed", size, dimension) for dimension in dimensions for size in centres]
    return [Setting("random", BANK), *compressed]


def study(
    grounds: Sequence[Embedded], wanted: Sequence[Setting], reference: Callable[[], object]
) -> dict[Candidate, dict[str, Any]]:
    """What each candidate reaches on one category; ``grounds`` are of one category, by detectors of several widths.

    Args:
        reference: what a look at an image is timed against, in turns.
    """
    found = {}
    for ground in grounds:
        counts = resampled(ground.labels)
        for setting in wanted:
            candidate = Candidate(_width(ground.detector), setting)
            say(f"{ground.detector.category}: {candidate.title}")
            found[candidate] = ground.cell(setting.title, partial(measure, ground, setting, counts, reference))
    return found


def measure(
    ground: Embedded, setting: Setting, counts: NDArray[np.float64], reference: Callable[[], object]
) -> dict[str, Any]:
    """AUROC of one candidate on the test images and samples of them; time of a whole look at an image."""
    density = fitted(ground, setting)
    cell = areas(ground.outcome(ground.score_maps(density.scores)), counts)
    scan = Scan(ground.scan.configuration, ground.scan.encoder, density, ground.scan.device)
    image = ground.images[:1]
    timings = interleave({"this": lambda: scan.maps(image), "reference": reference}, ROUNDS, device=ground.device)
    return cell | {
        "milliseconds": timings["this"].milliseconds,
        "share_of_reference": timings["this"].ratio(timings["reference"]),
    }


def base_detector(plan: InferencePlan, device: torch.device) -> Callable[[], object]:
    """A look at an image by the size ``base`` with an exact bank of ``BANK``; untrained, which is as slow."""
    configuration = DetectorConfiguration(encoder=DensePatchConfiguration(), inference=plan)
    encoder = create_encoder(configuration.encoder, configuration.geometry)
    bank = np.random.default_rng(0).normal(size=(BANK, encoder.dimension)).astype(np.float32)
    density = KernelDensity(KernelDensityConfiguration(mode="exact"), device)
    scan = Scan(configuration, encoder, density.fit(bank), device)
    side = configuration.geometry.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    return lambda: scan.maps(image)


def compare(categories: dict[str, dict[Candidate, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A line for each candidate, fastest first: what it loses against the largest in every category, and its time.

    ``kept`` tells whether no change is below minus ``TOLERATED``, ``sure`` whether no interval reaches below.
    """
    candidates = list(next(iter(categories.values())))
    largest = max(candidates, key=lambda candidate: (candidate.width, _freedom(candidate.setting)))
    lines = []
    for candidate in candidates:
        changes: list[float] = []
        lowest: list[float] = []
        line: dict[str, Any] = {"candidate": candidate.title, "largest": candidate == largest, "categories": {}}
        for category, cells in categories.items():
            cell, best = cells[candidate], cells[largest]
            of_category = {f"{kind}_auroc": points(cell[kind]) for kind in KINDS} | changed([cell], best)
            changes += [of_category[f"{kind}_change"] for kind in KINDS]
            lowest += [of_category[f"{kind}_change_interval"][0] for kind in KINDS]
            line["categories"][category] = of_category
        of_all = [cells[candidate] for cells in categories.values()]
        lines.append(
            line
            | {
                "worst_change": min(changes),
                "kept": min(changes) >= -TOLERATED,
                "sure": min(lowest) >= -TOLERATED,
                "milliseconds": float(np.median([cell["milliseconds"] for cell in of_all])),
                "share_of_reference": float(np.median([cell["share_of_reference"] for cell in of_all])),
            }
        )
    return sorted(lines, key=lambda line: float(line["share_of_reference"]))


def report(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as a table."""
    categories = list(lines[0]["categories"])
    head = ["candidate", "ms an image", "of base, exact", *(f"{name} {kind}" for name in categories for kind in KINDS)]
    rows = [
        [
            line["candidate"] + " (largest)" * line["largest"],
            f"{line['milliseconds']:.0f}",
            f"{line['share_of_reference']:.2f}",
            *(change(line["categories"][name], kind) for name in categories for kind in KINDS),
            "sure" if line["sure"] else "kept" if line["kept"] else "",
        ]
        for line in lines
    ]
    return aligned([[*head, f"within {TOLERATED}"], *rows])


def _freedom(setting: Setting) -> tuple[bool, bool, int]:
    """What tells more of a bank comes later."""
    return setting.kind == "compressed", not setting.dimension, setting.size


def _width(detector: Detector) -> int:
    encoder = detector.scan.configuration.encoder
    assert isinstance(encoder, DensePatchConfiguration)
    return encoder.width


def main() -> None:
    """Study the active versions of categories in several stores."""
    parser = study_parser(__doc__, "sizes", nargs="+", help="a store for each width")
    parser.add_argument("--centres", type=int, nargs="+", default=CENTRES, help="(default: %(default)s)")
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS, help="0: all (default: %(default)s)")
    options = parser.parse_args()
    keep_freed_memory()  # as ``plumbline`` does
    set_threads(options.threads)
    device = resolve_device(options.device)
    facts = machine(device)
    wanted = settings(options.centres, options.dimensions)
    categories = {}
    for category in options.categories:
        data = find_data(options.data, category)
        detectors = [load_active(models, category, options.device) for models in options.models]
        grounds = [
            Embedded(detector, data, options.out / f"width-{_width(detector)}" / category, options.limit, PART)
            for detector in detectors
        ]
        reference = base_detector(detectors[0].scan.configuration.inference, device)
        categories[category] = study(grounds, wanted, reference)
    lines = compare(categories)
    print(report(lines), flush=True)
    if options.json:
        print(json.dumps({"lines": lines, "machine": facts}))


if __name__ == "__main__":
    main()
