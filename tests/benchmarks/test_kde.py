"""The benchmark of kernel densities: that its figures are there, and that an error shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from benchmarks import kde
from benchmarks.kde import coverage, embeddings, log_sums_in_float64, measure
from models.densities.kernel import LogKernelSum
from tests.models.embeddings import spied_searches, squared_distances

CPU = torch.device("cpu")
SIZE, DIMENSION = 1500, 24
SUMS = ("exact, float32", "exact, bfloat16", "sampled", "scikit-learn KernelDensity")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kde.MOST_PRODUCTS, "cpu", 150 * SIZE)
    monkeypatch.setattr("benchmarks.kde.CHECKED", 20)


def rows(device: torch.device = CPU) -> dict[str, dict[str, Any]]:
    found = measure(device, [SIZE], 1, DIMENSION)
    assert found["machine"]["torch"] == torch.__version__
    return {row["way"]: row for row in found["rows"]}


def test_every_way_is_timed_and_compared_with_float64() -> None:
    found = rows()
    assert {"product, float32", "product, bfloat16", "compressed", *SUMS} < found.keys()
    assert all(row["embeddings"] == SIZE and row["milliseconds"] > 0 for row in found.values())
    assert all("times_the_product" in row for way, row in found.items() if not way.startswith("product"))
    for way in ("exact, float32", "scikit-learn KernelDensity"):
        assert 0 <= found[way]["rms_error"] <= found[way]["largest_error"] <= TOLERANCE
    assert TOLERANCE < found["exact, bfloat16"]["largest_error"] < 0.01
    assert TOLERANCE < found["compressed"]["rms_error"] < 0.05
    assert found["faiss flat, 32 nearest"]["largest_error"] > 0.01  # a sum over the nearest is another score
    assert found["exact, float32"]["queries"] == 150
    assert found["exact, float32"]["milliseconds_an_image"] == pytest.approx(
        found["exact, float32"]["milliseconds"] * 3249 / 150, rel=1e-3
    )


def test_the_product_takes_tile_by_tile_of_the_whole_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    product = torch.mm

    def noted(queries: Tensor, centres: Tensor, *, out: Tensor) -> Tensor:
        shapes.append(tuple(centres.shape))
        return product(queries, centres, out=out)

    monkeypatch.setitem(kde.PRODUCT_TILES, "cpu", 40)
    monkeypatch.setattr("torch.mm", noted)
    bank, queries = torch.split(embeddings(110, DIMENSION, CPU), [100, 10])
    kde._product(bank, queries, "float32")()
    assert shapes == [(DIMENSION, 40), (DIMENSION, 40), (DIMENSION, 20)]


@pytest.mark.cuda
def test_on_a_gpu_an_image_is_asked_whole_and_faiss_searches_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = spied_searches(monkeypatch)
    found = rows(torch.device("cuda"))
    assert found["product, float32"]["queries"] == found["exact, float32"]["queries"] == 3249
    on_gpu = "faiss flat on the GPU, 32 nearest"
    assert (on_gpu in found) == bool(searches) == (faiss.get_num_gpus() > 0)
    if searches:
        on_cpu = found["faiss flat, 32 nearest"]
        assert found[on_gpu]["rms_error"] == pytest.approx(on_cpu["rms_error"], abs=1e-4)


def test_a_wrong_sum_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = LogKernelSum.__call__
    monkeypatch.setattr(LogKernelSum, "__call__", lambda log_sum, queries: sums(log_sum, queries) + 0.1)
    assert rows()["exact, float32"]["rms_error"] > 10 * TOLERANCE


def test_float64_is_the_sum_of_kernels() -> None:
    bank, queries = torch.split(embeddings(60, DIMENSION, CPU), [50, 10])
    found = log_sums_in_float64(queries, bank, 7.0)
    assert found.dtype == torch.float64
    expected = logsumexp(-7.0 * squared_distances(queries.numpy(), bank.numpy()), axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_made_up_embeddings_are_unit_vectors_and_the_same_each_time() -> None:
    made = embeddings(9000, DIMENSION, CPU)  # more than are made at once
    torch.testing.assert_close(made.norm(dim=1), torch.ones(9000))
    torch.testing.assert_close(made, embeddings(9000, DIMENSION, CPU), rtol=0, atol=0)
    assert len(np.unique(made.numpy(), axis=0)) == 9000


@pytest.fixture
def study(tmp_path: Path) -> Path:
    made = embeddings(9000, DIMENSION, CPU).numpy()
    np.save(tmp_path / "bank.npy", made[:8000])
    np.save(tmp_path / "test.npy", made[8000:].reshape(10, 100, DIMENSION))
    return tmp_path


def test_coverage_is_near_the_confidence(study: Path) -> None:
    found = coverage(study, CPU, draws=5, samples=2000)
    assert (found["embeddings"], found["queries"], found["sizes"]) == (8000, 1000, [2000])
    assert found["first_sample"] > 0.85  # five draws, whose errors go together
    assert found["told"] > 0.5
    assert found["refined"] > 0.85
    assert 0 <= found["by_the_whole_sum"] <= 1


def test_the_furthest_windows_can_be_looked_at(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kde.COVERED", 200)
    random, furthest = (coverage(study, CPU, draws=5, samples=2000, furthest=furthest) for furthest in (False, True))
    assert random["queries"] == furthest["queries"] == 200
    assert furthest["told"] < random["told"]  # their sums rest on fewer embeddings
    assert furthest["half_widths"][1] > random["half_widths"][1]


def test_half_widths_that_are_too_narrow_show(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.densities.sampled.CONFIDENCE", 0.25)
    assert coverage(study, CPU, draws=5, samples=2000)["first_sample"] < 0.6
