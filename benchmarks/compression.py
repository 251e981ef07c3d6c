"""What a small density loses against the exact kernel density over every window of every good image, and what it costs.

python -m benchmarks.compression bottle pill --data DATA --models MODELS --out compression --json

It looks at test images, and is a study of the modes, not a way to choose settings of a detector. Each line is kept when
it is finished: run again, it goes on. All densities share the gamma of the whole bank.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.detectors import load_active
from benchmarks.embedded import Embedded, Outcome, change, find_data, points, study_parser
from benchmarks.machine import machine
from models.densities import KernelDensity, KernelDensityConfiguration
from models.densities.kernel import LogKernelSum, Precision
from models.densities.reduction import ReductionConfiguration
from models.densities.stream import HeldEmbeddings
from models.device import resolve_device, set_threads
from models.timing import interleave
from training.bootstrap import interval, resampled
from training.reproduction.report import aligned

RANDOM = 2000  # embeddings of the random banks that everything is compared with
CENTRES = (1024, 2048, 4096, 8192)
DIMENSIONS = (0, 128, 96, 64, 32)
SEEDS = 5
KINDS = ("image", "pixel")
TIMED = 1024  # queries that exact and compressed are timed on, in turns
ROUNDS = 3
RANKED = 200_000  # windows that a rank correlation is taken over


class Setting(NamedTuple):
    """A density to study.

    Attributes:
        kind: ``compressed``, of the whole bank; or ``random`` and ``neighbours``, exact and nearest of a random bank.
        size: embeddings of the bank that is left.
        dimension: what embeddings are reduced to; 0 for not at all.
        seed: of what is random about it.
    """

    kind: str
    size: int
    dimension: int = 0
    seed: int = 0

    @property
    def title(self) -> str:
        """Its name without the seed."""
        return f"{self.kind}-{self.size}" + (f"-pca{self.dimension}" if self.dimension else "")


def settings(centres: Sequence[int], dimensions: Sequence[int], seeds: int) -> list[Setting]:
    """Every setting, seed after seed, so that an early end leaves each of them some."""
    return [
        setting._replace(seed=seed)
        for seed in range(seeds)
        for setting in (
            Setting("random", RANDOM),
            Setting("neighbours", RANDOM),
            *(Setting("compressed", size, dimension) for dimension in dimensions for size in centres),
        )
    ]


def study(ground: Embedded, wanted: Sequence[Setting], precision: Precision = "float32") -> list[dict[str, Any]]:
    """A line for the exact density, and one for each setting over its seeds.

    Args:
        precision: of the exact density, which takes nearly all of a study's time.

    Returns:
        AUROC in points; its change against exact, of the mean over the seeds, with the 95 % paired bootstrap interval,
        and of each seed; how far window scores lie apart; milliseconds an image, and exact's over them, of seed 0.
    """
    category = ground.detector.category
    exact = Exact(torch.from_numpy(ground.bank).to(ground.device), ground.gamma, precision)
    reference = exact_maps(ground, exact)
    counts = resampled(ground.labels)
    truth = ground.cell("exact", lambda: areas(ground.outcome(reference), counts))
    lines: dict[str, list[dict[str, Any]]] = {}
    for number, setting in enumerate(wanted, 1):
        say(f"{category}: {number} of {len(wanted)}, {setting.title}, seed {setting.seed}")
        name = f"{setting.title}-{setting.seed}"
        cell = ground.cell(name, partial(measure, ground, setting, exact, reference, counts))
        lines.setdefault(setting.title, []).append(cell)
    facts = {"category": category, "density": f"exact, {precision}"}
    of_all = {**facts, "bank": len(ground.bank), "test_images": len(ground.test)}
    intervals = {f"{kind}_interval": _points(interval(np.array(truth[f"{kind}_samples"]))) for kind in KINDS}
    return [
        {**of_all, **{f"{kind}_auroc": points(truth[kind]) for kind in KINDS}, **intervals},
        *({"category": category, "density": title, **summary(cells, truth)} for title, cells in lines.items()),
    ]


class Exact:
    """The kernel density over all of a bank that may be on disk, scored as ``KernelDensity`` scores."""

    def __init__(self, bank: Tensor, gamma: float, precision: Precision) -> None:
        self.gamma = gamma
        self._log_sum = LogKernelSum(bank, gamma, precision=precision)
        self._log_samples = math.log(len(bank))

    def __call__(self, queries: Tensor) -> Tensor:
        """(n, D) -> (n,)."""
        return (self._log_sum(queries) - self._log_samples) / self.gamma


def exact_maps(ground: Embedded, exact: Exact) -> NDArray[np.float32]:
    """Exact score maps of the test images (n, h, w); each is kept when it is there."""
    side = ground.geometry.grid_size
    path = ground.folder / "exact.npy"
    if not path.exists():
        np.save(path, np.full((len(ground.test), side, side), np.nan, dtype=np.float32))
    maps = np.load(path, mmap_mode="r+")
    missing = np.flatnonzero(np.isnan(maps).any(axis=(1, 2)))
    started = time.monotonic()
    for done, number in enumerate(missing, 1):
        with torch.inference_mode():
            queries = torch.from_numpy(ground.test[number]).to(ground.device)
            maps[number] = -exact(queries).cpu().numpy().reshape(side, side)
        maps.flush()
        left = (time.monotonic() - started) / done * (len(missing) - done) / 60
        say(f"{ground.detector.category}: exact scores, {done} of {len(missing)} images, {left:.0f} minutes left")
    return np.asarray(maps)


def measure(
    ground: Embedded, setting: Setting, exact: Exact, reference: NDArray[np.float32], counts: NDArray[np.float64]
) -> dict[str, Any]:
    """One setting with one seed: AUROC of the test images and of samples of them, distances, time and size."""
    started = time.perf_counter()
    density = fitted(ground, setting)
    cell: dict[str, Any] = {"fit_seconds": time.perf_counter() - started, "facts": density.facts()}
    maps = ground.score_maps(density.scores)
    apart = maps - reference
    some = np.random.default_rng(0).choice(maps.size, min(maps.size, RANKED), replace=False)
    cell |= areas(ground.outcome(maps), counts) | {
        "mean_difference": float(apart.mean()),
        "deviation": float(apart.std()),
        "largest_difference": float(np.abs(apart).max()),
        "spearman": float(spearmanr(maps.ravel()[some], reference.ravel()[some]).statistic),
    }
    if setting.seed == 0:
        queries = torch.from_numpy(ground.test[0][:TIMED]).to(ground.device)
        turns = {"this": lambda: density.scores(queries), "exact": lambda: exact(queries)}
        with torch.inference_mode():
            timings = interleave(turns, ROUNDS, device=ground.device)
        of_image = ground.geometry.grid_size**2 / len(queries)
        cell |= {
            "milliseconds": of_image * timings["this"].milliseconds,
            "exact_milliseconds": of_image * timings["exact"].milliseconds,
            "times_faster": timings["exact"].ratio(timings["this"]),
        }
    return cell


def fitted(ground: Embedded, setting: Setting) -> KernelDensity:
    """The density of a setting, of the whole bank or of a random one."""
    if setting.kind == "compressed":
        reduction = ReductionConfiguration(dimension=setting.dimension) if setting.dimension else None
        configuration = KernelDensityConfiguration(
            mode="compressed", centres=setting.size, reduction=reduction, gamma=ground.gamma
        )
        stream = HeldEmbeddings(torch.from_numpy(ground.bank))
        return KernelDensity(configuration, ground.device).fit_stream(stream, setting.seed)
    random = np.random.default_rng(setting.seed)
    chosen = np.sort(random.choice(len(ground.bank), min(setting.size, len(ground.bank)), replace=False))
    mode: Literal["exact", "neighbours"] = "neighbours" if setting.kind == "neighbours" else "exact"
    configuration = KernelDensityConfiguration(mode=mode, gamma=ground.gamma)
    return KernelDensity(configuration, ground.device).fit(ground.bank[chosen])


def areas(outcome: Outcome, counts: NDArray[np.float64]) -> dict[str, Any]:
    """Image and pixel AUROC of the test images, and of every sample of them."""
    found: dict[str, Any] = {}
    for kind, wins in zip(KINDS, outcome, strict=True):
        found |= {kind: float(wins.auroc()[0]), f"{kind}_samples": wins.auroc(counts).round(7).tolist()}
    return found


def changed(cells: Sequence[dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    """By how much AUROC changes, the mean of ``cells``, with the 95 % paired bootstrap interval; in points."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        samples = np.mean([cell[f"{kind}_samples"] for cell in cells], axis=0) - np.array(before[f"{kind}_samples"])
        found |= {
            f"{kind}_change": points(float(np.mean([cell[kind] - before[kind] for cell in cells]))),
            f"{kind}_change_interval": _points(interval(samples)),
        }
    return found


def summary(cells: Sequence[dict[str, Any]], truth: dict[str, Any]) -> dict[str, Any]:
    """One setting over its seeds, against exact."""
    line: dict[str, Any] = {"banks": len(cells), **changed(cells, truth)}
    for kind in KINDS:
        line[f"{kind}_changes"] = _points([cell[kind] - truth[kind] for cell in cells])
    for name in ("spearman", "deviation", "largest_difference", "fit_seconds"):
        line[name] = float(np.median([cell[name] for cell in cells]))
    return line | {name: cells[0][name] for name in ("milliseconds", "exact_milliseconds", "times_faster")}


def report(lines: Sequence[dict[str, Any]]) -> str:
    """The lines of a category as a table."""
    exact, *others = lines
    areas = ", ".join(
        f"{kind} AUROC {exact[f'{kind}_auroc']:.2f} ({low:.2f} to {high:.2f})"
        for kind in KINDS
        for low, high in [exact[f"{kind}_interval"]]
    )
    head = ["density", "image AUROC", "worst bank", "pixel AUROC", "worst bank", "Spearman", "ms an image", "faster"]
    rows = [
        [
            line["density"],
            *(text for kind in KINDS for text in (change(line, kind), f"{min(line[f'{kind}_changes']):+.2f}")),
            f"{line['spearman']:.4f}",
            f"{line['milliseconds']:.0f}",
            f"{line['times_faster']:.0f} times",
        ]
        for line in others
    ]
    title = f"{exact['category']}: {exact['density']}, {exact['bank']} embeddings, {exact['test_images']} test images"
    return f"{title}: {areas}\n\n{aligned([head, *rows])}"


def say(text: str) -> None:
    """Tell how it goes, beside the result."""
    print(text, file=sys.stderr, flush=True)


def _points(shares: Sequence[float]) -> list[float]:
    return [points(share) for share in shares]


def main() -> None:
    """Study the active versions of categories."""
    parser = study_parser(__doc__, "compression")
    parser.add_argument("--part", type=int, help="of all windows about so many in its place, drawn at random")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of the exact density")
    parser.add_argument("--centres", type=int, nargs="+", default=CENTRES, help="(default: %(default)s)")
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS, help="0: all (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="banks of each (default: %(default)s)")
    options = parser.parse_args()
    set_threads(options.threads)
    facts = machine(resolve_device(options.device))
    wanted = settings(options.centres, options.dimensions, options.seeds)
    lines = []
    for category in options.categories:
        data, detector = find_data(options.data, category), load_active(options.models, category, options.device)
        folder = options.out / category
        ground = Embedded(detector, data, folder, options.limit, options.part, exact=options.precision)
        found = study(ground, wanted, options.precision)
        lines += found
        print(report(found), flush=True)
    if options.json:
        print(json.dumps({"lines": lines, "machine": facts}))


if __name__ == "__main__":
    main()
