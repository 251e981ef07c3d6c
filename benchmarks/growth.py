"""How the time of an image grows: with the bank, by mode of the kernel density, with the batch, and with the area.

plumbline benchmark growth --out DIR --json

A default encoder with random weights, and banks of random unit vectors: the time of a scan (input to score map and
heatmap) depends on neither, but for the *sampled* mode, which takes more samples where it is less sure.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator
from numpy.typing import NDArray

from benchmarks.kde import FEWEST, TooFew
from benchmarks.machine import machine
from models.configuration import DetectorConfiguration
from models.densities import Density, KernelDensityConfiguration, create_density
from models.densities.kde import Computed
from models.encoders import Encoder, create_encoder
from models.geometry import ScanGeometry
from models.scan import Scan
from models.timing import Timing, interleave

BANK_SIZES = (1024, 4096, 16384, 65536)
CUDA_BANK_SIZES = (4096, 16384, 65536, 262144, 1048576)
USUAL_BANK = 16384  # compressed: the time does not depend on it
MOST_MEGABYTES = 10_000.0  # of a bank
BATCHES = (1, 2, 4, 8, 16, 32)
SIDES = (128, 256, 384, 512, 768)
MOST_SECONDS = 30.0  # of the timed runs of each point
TITLES = {"bank": "embeddings in the bank", "batch": "images a batch", "area": "pixels of the input"}
COLOURS = ("#c0392b", "#2a7f62", "#2c5d8f", "#b8860b", "#7d3c98")


def measure(
    out: Path,
    device: torch.device,
    *,
    bank_sizes: Sequence[int] | None = None,
    batches: Sequence[int] = BATCHES,
    sides: Sequence[int] = SIDES,
    configuration: DetectorConfiguration | None = None,
    rounds: int = 7,
) -> dict[str, Any]:
    """Time scans, and write ``growth.csv``, ``growth.json`` and ``growth.png``.

    Args:
        out: the folder for them.
        device: where to run.
        bank_sizes: embeddings; None for what suits the device.
        batches: images in one call.
        sides: of the square input, in pixels.
        configuration: of the detector, but for the mode of its density and its image size.
        rounds: timed runs of each point, in turns with the others of its curve.

    Returns:
        For each curve its points and how it ``grows``: the exponent from its last point but one to the last, about 1
        where the time is proportional and 0 where it is flat.

    Raises:
        TooFew: a bank is below ``FEWEST``.
    """
    if bank_sizes and min(bank_sizes) < FEWEST:
        raise TooFew(
            f"a bank of {min(bank_sizes)} embeddings cannot be compressed; --bank-sizes must be at least {FEWEST}"
        )
    out.mkdir(parents=True, exist_ok=True)
    facts = machine(device)
    configuration = configuration or DetectorConfiguration()
    bank_sizes = bank_sizes or (CUDA_BANK_SIZES if device.type == "cuda" else BANK_SIZES)
    torch.manual_seed(0)
    encoder = create_encoder(configuration.encoder, configuration.geometry)
    timed = partial(interleave, rounds=rounds, device=device, seconds=MOST_SECONDS)

    def banks(mode: Computed) -> Mapping[str, Timing]:
        density = KernelDensityConfiguration(mode=mode, bank_megabytes=MOST_MEGABYTES)
        densities = {str(size): _fitted(density, encoder, size, device) for size in bank_sizes}
        image = _images(1, configuration.geometry.image_size)
        return timed(
            {size: partial(_scan(configuration, encoder, of_size).look, image) for size, of_size in densities.items()}
        )

    curves: dict[tuple[str, str], dict[int, Timing]] = {}
    for mode in get_args(Computed):
        curves["bank", mode] = {int(size): timing for size, timing in banks(mode).items()}
    usual = _fitted(KernelDensityConfiguration(mode="compressed"), encoder, USUAL_BANK, device)  # auto of real images
    scan = _scan(configuration, encoder, usual)
    of_batches = timed(
        {str(batch): partial(scan.look, _images(batch, configuration.geometry.image_size)) for batch in batches}
    )
    curves["batch", "default"] = {
        int(batch): Timing(tuple(second / int(batch) for second in timing.seconds))
        for batch, timing in of_batches.items()
    }
    of_sides = {}
    for side in sides:
        sized = configuration.model_copy(update={"geometry": _sized(configuration.geometry, side)})
        of_sides[str(side)] = partial(_scan(sized, encoder, usual).look, _images(1, side))
    curves["area", "default"] = {int(side) ** 2: timing for side, timing in timed(of_sides).items()}

    result = {
        "curves": {
            f"{along} {mode}": {
                "grows": _exponent(points),
                "points": {str(x): timing.facts() for x, timing in points.items()},
            }
            for (along, mode), points in curves.items()
        },
        "configuration": scan.configuration.model_dump(mode="json"),
        "bank": USUAL_BANK,
        "machine": facts,
    }
    (out / "growth.json").write_text(json.dumps(result, indent=2) + "\n")
    _write_table(out / "growth.csv", curves)
    plot(curves, str(facts.get("gpu", facts["cpu"]))).savefig(out / "growth.png", dpi=120)
    return {"folder": str(out), **result}


def plot(curves: Mapping[tuple[str, str], Mapping[int, Timing]], title: str) -> Figure:
    """Milliseconds an image along each axis, both logarithmic, with quartiles; dotted is what is proportional."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels: dict[str, Axes] = dict(zip(TITLES, figure.subplots(1, len(TITLES)), strict=True))
    for number, ((along, mode), points) in enumerate(curves.items()):
        facts = [timing.facts() for timing in points.values()]
        middle = np.array([fact["milliseconds"] for fact in facts])
        low, high = np.array([fact["spread"] for fact in facts]).T
        errors = np.clip([middle - low, high - middle], 0, None)
        colour = COLOURS[number % len(COLOURS)]
        panels[along].errorbar(list(points), middle, errors, color=colour, marker="o", capsize=3, label=mode)
    for along, axes in panels.items():
        of_panel = [points for (axis, _), points in curves.items() if axis == along]
        axes.set(xscale="log", xlabel=TITLES[along], ylabel="milliseconds an image")
        if along == "batch":
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
            _draw_proportional(axes, of_panel)
        ticks = sorted({x for points in of_panel for x in points})
        axes.set_xticks(ticks, [EngFormatter(places=0, sep="")(x) for x in ticks], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    return figure


def _draw_proportional(axes: Axes, curves: Sequence[Mapping[int, Timing]]) -> None:
    """Through the end of the curve that ends highest."""
    highest = max(curves, key=lambda points: points[max(points)].milliseconds)
    first, last = min(highest), max(highest)
    end = highest[last].milliseconds
    bottom = axes.get_ylim()[0]
    axes.plot([first, last], [end * first / last, end], color="#bbbbbb", linestyle=":", label="proportional")
    axes.set_ylim(bottom=bottom)


def _exponent(points: Mapping[int, Timing]) -> float | None:
    """By the last two points, timed in turns."""
    if len(points) < 2:
        return None
    (before, shorter), (last, longer) = sorted(points.items())[-2:]
    return round(math.log(longer.ratio(shorter)) / math.log(last / before), 3)


def _write_table(path: Path, curves: Mapping[tuple[str, str], Mapping[int, Timing]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["along", "mode", "x", "milliseconds", "low", "high", "fastest", "runs"])
        for (along, mode), points in curves.items():
            for x, timing in points.items():
                fact = timing.facts()
                writer.writerow([along, mode, x, fact["milliseconds"], *fact["spread"], fact["fastest"], fact["runs"]])


def _fitted(configuration: KernelDensityConfiguration, encoder: Encoder, size: int, device: torch.device) -> Density:
    random = np.random.default_rng(0)
    bank = random.standard_normal((size, encoder.dimension), np.float32)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    return create_density(configuration, device).fit(bank)


def _scan(configuration: DetectorConfiguration, encoder: Encoder, density: Density) -> Scan:
    return Scan(configuration, encoder, density, density.device)


def _sized(geometry: ScanGeometry, side: int) -> ScanGeometry:
    return ScanGeometry.model_validate({**geometry.model_dump(), "image_size": side})


def _images(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8)
