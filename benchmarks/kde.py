"""Ways to compute a kernel density: time, memory, and error against float64, by the bank's size.

plumbline benchmark kde --json
plumbline benchmark kde --study FOLDER --json    (how often the sampled mode's error bars hold, on real embeddings)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from sklearn.neighbors import KernelDensity as SklearnKernelDensity
from torch import Tensor

from benchmarks.machine import machine, peak_memory
from models.densities import KernelDensity, KernelDensityConfiguration, paper_gamma
from models.densities.bank import Bank
from models.densities.kernel import CUDA_CENTRE_TILE, LogKernelSum, Precision
from models.densities.sampled import (
    CONFIDENCE,
    LARGEST_SHARE,
    SMALLEST,
    SampledLogKernelSum,
    sample_sizes,
    stratified_rows,
)
from models.densities.stream import HeldEmbeddings
from models.geometry import ScanGeometry
from models.memory import array_bytes
from models.timing import interleave

SIZES = (10_000, 100_000, 1_000_000)
DIMENSION, NEIGHBOURS = 512, 32
# Of a query and an embedding, by device: fewer queries than an image's where there would be more.
MOST_PRODUCTS = {"cpu": 4e8, "cuda": math.inf}
MOST_SECONDS = 60.0  # of the timed runs of each
CHECKED = 64  # queries compared with float64
LARGEST_FOR_TREES = 100_000  # scikit-learn holds the bank in float64, and more than once
TREE_PRODUCTS = 3e5  # it takes about a thousand times as long for each as the others do
CLUSTERS, SPECTRUM = 60, 0.7  # of made-up embeddings; the deviation along axis i falls as i ** -SPECTRUM
PART = 2**13
PRODUCT_TILES = {"cpu": 2**12, "cuda": CUDA_CENTRE_TILE}  # embeddings of the bare product's tile, by device
FEWEST = 106  # embeddings of a bank whose dimensions the compressed mode can reduce to 96
COVERED = 10_000  # queries whose error bars are checked
RANKING = 4096  # embeddings whose sum tells which queries are the furthest
ROUNDING = 1e-5  # of the logarithm of a whole sum, which has no error bar
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "cpu": ("float32", "bfloat16"),
    "cuda": ("float32", "bfloat16", "float16"),
}


class TooFew(ValueError):
    """A bank is too small for what is to be measured; the message says how large it must be."""


class Way(NamedTuple):
    """One way to a score.

    Attributes:
        run: what is timed.
        queries: how many it is given.
        log_sums: (n, D) queries -> (n,) logarithms of kernel sums; None for what gives none.
        product: the bare matrix product that it is compared with; None for that itself.
        holds: bytes beside the bank.
    """

    run: Callable[[], object]
    queries: int
    log_sums: Callable[[Tensor], Tensor] | None = None
    product: str | None = None
    holds: int = 0


@torch.inference_mode()
def measure(
    device: torch.device, sizes: Sequence[int] = SIZES, repeats: int = 7, dimension: int = DIMENSION
) -> dict[str, Any]:
    """Time every way in turns, for made-up embeddings that cluster as those of real parts do.

    Args:
        device: where sums are computed; scikit-learn and FAISS's search run on the CPU, and FAISS's on a GPU beside
            it where FAISS finds one and sums are computed there.
        sizes: of the bank.
        repeats: timed runs of each, which end after a minute.
        dimension: of the embeddings.

    Returns:
        ``rows``: for each size and way the milliseconds of ``queries`` queries (median, spread), scaled to an image's
        3249, the ratio to the bare matrix product of the same precision, the bytes held beside the bank and needed at
        the highest, and the largest and root mean square error of the score against float64.

    Raises:
        TooFew: a size is below ``FEWEST``.
    """
    if min(sizes) < FEWEST:
        raise TooFew(f"a bank of {min(sizes)} embeddings cannot be compressed; --sizes must be at least {FEWEST}")
    facts, rows = machine(device), []
    for size in sizes:
        rows += _measure(device, size, repeats, dimension)
    return {"rows": rows, "dimension": dimension, "machine": facts}


def _measure(device: torch.device, size: int, repeats: int, dimension: int) -> list[dict[str, Any]]:
    windows = ScanGeometry().grid_size ** 2
    count = int(min(windows, MOST_PRODUCTS[device.type] / size))
    bank, queries = torch.split(embeddings(size + count, dimension, device), [size, count])
    gamma = paper_gamma(bank[:: max(1, size // 100_000)].cpu().numpy())
    checked = queries[: CHECKED if size <= 100_000 else CHECKED // 4]
    true = log_sums_in_float64(checked, bank, gamma)
    ways = _ways(bank, queries, gamma)
    needs = {name: peak_memory(way.run, device) for name, way in ways.items()}
    timings = interleave({name: way.run for name, way in ways.items()}, repeats, device=device, seconds=MOST_SECONDS)
    rows = []
    for name, way in ways.items():
        timing = timings[name]
        row = {"embeddings": size, "way": name, "queries": way.queries, **timing.facts()}
        row["milliseconds_an_image"] = timing.milliseconds * windows / way.queries
        if way.product:
            row["times_the_product"] = timing.ratio(timings[way.product]) * count / way.queries
        row |= {"holds_bytes": way.holds, "needs_bytes": needs[name]}
        if way.log_sums:
            sums = way.log_sums(checked).double()  # a slow way answers fewer
            errors = ((sums - true[: len(sums)]) / gamma).abs()
            row |= {"largest_error": float(errors.max()), "rms_error": float(errors.square().mean().sqrt())}
        rows.append(row)
        _show(row)
    return rows


def _ways(bank: Tensor, queries: Tensor, gamma: float) -> dict[str, Way]:
    count, ways = len(queries), {}
    for precision in PRECISIONS[bank.device.type]:
        product = f"product, {precision}"
        whole = LogKernelSum(bank, gamma, precision=precision)
        ways[product] = Way(_product(bank, queries, precision), count)
        ways[f"exact, {precision}"] = Way(partial(whole, queries), count, whole, product)
        if bank.is_cuda and precision != "float32":
            fused = LogKernelSum(bank, gamma, precision=precision, fused=True)
            ways[f"exact, {precision}, fused"] = Way(partial(fused, queries), count, fused, product)
    product, configuration = "product, float32", KernelDensityConfiguration(mode="sampled")
    rows = stratified_rows(bank, sample_sizes(configuration.samples, len(bank)), configuration.seed)
    whole = LogKernelSum(bank, gamma)
    sampled = SampledLogKernelSum(bank, gamma, rows, configuration.tolerance * gamma, whole)
    ways["sampled"] = Way(partial(sampled, queries), count, sampled, product, sum(part.numel() * 12 for part in rows))
    of_centres = KernelDensityConfiguration(mode="compressed", gamma=gamma)
    compressed = KernelDensity(of_centres, bank.device).fit_stream(HeldEmbeddings(bank))
    ways["compressed"] = Way(
        partial(compressed.scores, queries),
        count,
        lambda queries: compressed.scores(queries) * gamma + math.log(len(bank)),
        product,
        array_bytes(compressed),
    )
    host, asked = bank.cpu().numpy(), queries.cpu().numpy()
    index = faiss.IndexFlatL2(host.shape[1])
    index.add(host)

    def nearest(queries: Tensor) -> Tensor:
        return torch.logsumexp(-gamma * torch.from_numpy(index.search(queries.cpu().numpy(), NEIGHBOURS)[0]), dim=1)

    ways[f"faiss flat, {NEIGHBOURS} nearest"] = Way(
        lambda: index.search(asked, NEIGHBOURS), count, lambda queries: nearest(queries).to(queries.device), product
    )
    if bank.is_cuda and faiss.get_num_gpus() > 0:
        held = Bank(index, bank.device)  # searches as a density does, where the queries lie

        def nearest_on_gpu(queries: Tensor) -> Tensor:
            return torch.logsumexp(-gamma * held.squared_distances(queries, NEIGHBOURS), dim=1)

        search = partial(held.squared_distances, queries, NEIGHBOURS)
        ways[f"faiss flat on the GPU, {NEIGHBOURS} nearest"] = Way(search, count, nearest_on_gpu, product)
    if len(bank) <= LARGEST_FOR_TREES:
        few = max(1, min(count, int(TREE_PRODUCTS / len(bank))))
        tree = SklearnKernelDensity(bandwidth=1 / math.sqrt(2 * gamma)).fit(host)
        constant = host.shape[1] / 2 * math.log(gamma / math.pi) - math.log(len(bank))
        ways["scikit-learn KernelDensity"] = Way(
            lambda: tree.score_samples(asked[:few]),
            few,
            lambda queries: torch.from_numpy(tree.score_samples(queries[:few].cpu().numpy()) - constant),
            product,
            host.size * 8,
        )
    return ways


def _product(bank: Tensor, queries: Tensor, precision: Precision) -> Callable[[], None]:
    """All inner products, a tile after the other into the same memory."""
    kind = getattr(torch, precision)
    bank, queries = bank.to(kind), queries.to(kind)
    rows = PRODUCT_TILES[bank.device.type]
    memory = queries.new_empty(len(queries) * min(rows, len(bank)))

    def run() -> None:
        for part in torch.split(bank, rows):
            tile = memory[: len(queries) * len(part)].view(len(queries), len(part))
            torch.mm(queries, part.T, out=tile)

    return run


@torch.inference_mode()
def coverage(
    study: Path,
    device: torch.device,
    draws: int = 20,
    size: int | None = None,
    samples: int | None = None,
    furthest: bool = False,
) -> dict[str, Any]:
    """How often the exact score lies within the half-width that the sampled mode states, on real embeddings.

    Args:
        study: the folder of a category that ``benchmarks.compression`` made: ``bank.npy`` and ``test.npy``.
        device: where sums are computed.
        draws: samples that are drawn independently.
        size: embeddings of the bank, drawn at random; None for all.
        samples: embeddings in the smallest sample; None for the default.
        furthest: look at the windows of test images that deviate most, and not at random ones.

    Returns:
        Over 10,000 windows of test images, good and defective: ``first_sample``, the share covered where the smallest
        sample tells a half-width (``told``); ``refined``, the share covered of all queries at the default tolerance,
        with the shares of queries that a larger sample or the whole sum decided; half-widths and errors of scores.

    Raises:
        TooFew: the bank is too small for its smallest sample.
    """
    random = np.random.default_rng(0)
    held, test = (np.load(study / f"{name}.npy", mmap_mode="c") for name in ("bank", "test"))
    chosen = np.sort(random.choice(len(held), min(size or len(held), len(held)), replace=False))
    bank = torch.from_numpy(held[chosen]).to(device)
    configuration = KernelDensityConfiguration(mode="sampled", **({} if samples is None else {"samples": samples}))
    sizes = sample_sizes(configuration.samples, len(bank))
    if not sizes:
        raise TooFew(
            f"a bank of {len(bank)} embeddings is too small to be sampled: it must have at least "
            f"{LARGEST_SHARE * SMALLEST} (--sizes)"
        )
    gamma = paper_gamma(bank[:: max(1, len(bank) // 100_000)].cpu().numpy())
    whole = LogKernelSum(bank, gamma)
    windows = test.reshape(-1, test.shape[-1])
    if furthest:
        few = LogKernelSum(bank[:: max(1, len(bank) // RANKING)], gamma)
        parts = [few(torch.from_numpy(windows[row : row + PART]).to(device)) for row in range(0, len(windows), PART)]
        rows = torch.cat(parts).argsort()[:COVERED].sort().values.cpu().numpy()
    else:
        rows = np.sort(random.choice(len(windows), min(COVERED, len(windows)), replace=False))
    queries = torch.from_numpy(windows[rows]).to(device)
    true = whole(queries)
    seen: dict[str, list[Tensor]] = {name: [] for name in ("first", "told", "widths", "refined", "larger", "whole")}
    errors = []
    for seed in range(draws):
        samples_drawn = stratified_rows(bank, sizes, seed)
        first = SampledLogKernelSum(bank, gamma, samples_drawn[:1], math.inf, whole).estimates(queries)
        told = first.half_widths.isfinite()
        refined = SampledLogKernelSum(bank, gamma, samples_drawn, configuration.tolerance * gamma, whole)
        found = refined.estimates(queries)
        error = (found.log_sums - true).abs()
        seen["first"].append((first.log_sums - true).abs() <= first.half_widths)
        seen["told"].append(told)
        seen["widths"].append(first.half_widths / gamma)
        seen["refined"].append(error <= found.half_widths + ROUNDING)
        seen["larger"].append((found.half_widths > 0) & (found.half_widths != first.half_widths))
        seen["whole"].append(found.half_widths == 0)
        errors.append(error / gamma)
    stacked = {name: torch.stack(values).float() for name, values in seen.items()}
    per_draw = (stacked["first"] * stacked["told"]).sum(dim=1) / stacked["told"].sum(dim=1)
    widths = stacked["widths"].flatten().sort().values
    return {
        "confidence": CONFIDENCE,
        "embeddings": len(bank),
        "dimension": bank.shape[1],
        "gamma": gamma,
        "queries": len(queries),
        "furthest": furthest,
        "draws": draws,
        "sizes": sizes,
        "tolerance": configuration.tolerance,
        "told": float(stacked["told"].mean()),
        "first_sample": float((stacked["first"] * stacked["told"]).sum() / stacked["told"].sum()),
        "first_sample_by_draw": [float(per_draw.min()), float(per_draw.median()), float(per_draw.max())],
        "first_sample_of_queries": [
            float(value) for value in np.quantile(stacked["first"].mean(dim=0).cpu().numpy(), (0.01, 0.1, 0.5))
        ],
        "half_widths": [float(widths[int(share * (len(widths) - 1))]) for share in (0.1, 0.5, 0.9, 0.99)],
        "refined": float(stacked["refined"].mean()),
        "by_a_larger_sample": float(stacked["larger"].mean()),
        "by_the_whole_sum": float(stacked["whole"].mean()),
        "rms_error": float(torch.stack(errors).square().mean().sqrt()),
        "machine": machine(device),
    }


def embeddings(count: int, dimension: int, device: torch.device, seed: int = 0) -> Tensor:
    """Unit vectors (count, D) that cluster unevenly around a common direction, most of their variance on few axes."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, dimension + 1) ** -SPECTRUM
    spectrum /= spectrum.norm()
    common = torch.randn(dimension, generator=generator)
    common /= common.norm()
    centres = torch.randn(CLUSTERS, dimension, generator=generator) * spectrum
    shares = torch.linspace(0, -3, CLUSTERS).exp()
    made = torch.empty(count, dimension, device=device)
    for part in torch.split(made, PART):
        clusters = torch.multinomial(shares, len(part), replacement=True, generator=generator)
        noise = torch.randn(len(part), dimension, generator=generator) * spectrum
        vectors = common + 0.8 * centres[clusters] + 0.5 * noise
        part.copy_(torch.nn.functional.normalize(vectors, dim=1))
    return made


def log_sums_in_float64(queries: Tensor, bank: Tensor, gamma: float) -> Tensor:
    """log sum_j exp(-gamma ||x - y_j||^2) by differences, (n,) float64: slow, and unlike all that is measured."""
    total = torch.full((len(queries),), -math.inf, dtype=torch.float64, device=bank.device)
    for part in torch.split(bank, PART):
        exponents = torch.stack([-gamma * (part.double() - query).square().sum(dim=1) for query in queries.double()])
        total = torch.logaddexp(total, exponents.logsumexp(dim=1))
    return total


def _show(row: dict[str, Any]) -> None:
    told = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
    print("  ".join(told), flush=True)
