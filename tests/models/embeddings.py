"""Embeddings to fit densities on, and their distances the slow way."""

from __future__ import annotations

from typing import Any

import faiss
import faiss.contrib.torch_utils
import numpy as np
import pytest
from numpy.typing import NDArray


def unit_vectors(count: int, dimension: int, seed: int, spread: float = 0.5) -> NDArray[np.float32]:
    """Unit vectors around a common direction, whose channels differ, as embeddings are."""
    random = np.random.default_rng(seed)
    vectors = 1 + np.cos(np.arange(dimension)) + spread * random.standard_normal((count, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def squared_distances(queries: NDArray[np.float32], bank: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, N), a row at a time and in float64, by differences: nothing cancels."""
    return np.stack([np.square(bank.astype(np.float64) - query).sum(axis=1) for query in queries])


def spied_searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of neighbours that FAISS is asked for on a GPU from now on; none where it has no GPU."""
    searches: list[int] = []
    if faiss.get_num_gpus() > 0:
        search = faiss.knn_gpu

        def noted(resources: Any, queries: Any, bank: Any, count: int, **settings: Any) -> Any:
            searches.append(count)
            return search(resources, queries, bank, count, **settings)

        monkeypatch.setattr(faiss, "knn_gpu", noted)
    return searches
