"""The bank: the embeddings that a density keeps, on a FAISS index."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import faiss
import faiss.contrib.torch_utils  # lets FAISS search tensors where they lie, on the GPU too
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.densities.base import NOT_FINITE, Density

BANK_FILE = "bank.faiss"
FLAT_L2 = b"IxF2"  # what the file of such an index begins with; those of other kinds may have FAISS open more files
GPU_NEIGHBOURS = 2048  # FAISS on a GPU finds no more; the CPU does
DIFFERENCES = 2**19  # entries of the differences to neighbours held at once: 2 MB, which a cache holds


class Bank:
    """Embeddings on a FAISS flat index (exact search), held once, where scores are computed.

    FAISS on a GPU is not safe to call from two threads, even to read: a bank there has one owner. Its scratch memory
    (1.5 GiB on most GPUs) is one for all banks that a thread searches.

    Args:
        index: a flat L2 index of the embeddings; let go of where they lie on a GPU.
        device: where scores are computed.

    Attributes:
        vectors: the embeddings, (N, D) on the device; on the CPU a view of the index's own memory.
    """

    def __init__(self, index: Any, device: torch.device) -> None:
        self.vectors = torch.from_numpy(_memory(index)).to(device)
        self._index: Any = index if self.vectors.device.type == "cpu" else None
        self._on_gpu = device.type == "cuda" and faiss.get_num_gpus() > 0

    @classmethod
    def of(cls, parts: Iterable[Tensor], count: int, dimension: int, device: torch.device) -> Self:
        """A bank of ``count`` embeddings that come in parts (n, D), on whatever device; it alone holds them."""
        index = faiss.IndexFlatL2(dimension)
        index.codes.resize(count * index.code_size)  # ``add`` would copy from an array that is as large
        index.ntotal = count
        vectors, row = torch.from_numpy(_memory(index)), 0
        for part in parts:
            vectors[row : row + len(part)] = part
            row += len(part)
        assert row == count
        return cls(index, device)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """The bank that ``save`` wrote.

        Raises:
            OSError, RuntimeError, ValueError: it is not there, not whole, or another kind of index.
        """
        path = folder / BANK_FILE
        with path.open("rb") as file:
            if (kind := file.read(len(FLAT_L2))) != FLAT_L2:
                raise ValueError(f"{BANK_FILE} is no flat L2 index of FAISS; it begins with {kind!r}")
        return cls(faiss.read_index(str(path)), device)

    def save(self, folder: Path) -> None:
        """Write the index into ``folder``."""
        faiss.write_index(self._on_cpu(), str(folder / BANK_FILE))

    def __len__(self) -> int:
        return len(self.vectors)

    def squared_distances(self, queries: Tensor, count: int) -> Tensor:
        """Squared distances of queries (n, D) to their ``count`` nearest embeddings: (n, count).

        They are FAISS's. Where a gradient is asked for, they are computed again from the neighbours that it found: the
        distances are differentiable in the queries, which embeddings are the nearest is not.
        """
        distances, neighbours = self._search(queries.detach().contiguous(), count)
        if not queries.requires_grad:
            return distances.clamp_min(0)  # rounding can put it just below
        rows = max(1, DIFFERENCES // (count * queries.shape[1]))
        parts = zip(torch.split(queries, rows), torch.split(neighbours, rows), strict=True)
        return torch.cat([(part[:, None] - self.vectors[nearest]).square().sum(dim=2) for part, nearest in parts])

    def _search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Squared distances to the nearest embeddings, and which they are: (n, count) each, on the device."""
        if self._on_gpu and count <= GPU_NEIGHBOURS:
            device = self.vectors.device.index
            found = faiss.knn_gpu(_gpu_resources(), queries, self.vectors, count, device=device)
        else:
            found = self._on_cpu().search(queries.cpu(), count)
        distances, neighbours = (tensor.to(self.vectors.device) for tensor in found)
        # Of a query that is no number FAISS finds nothing, at float32's largest distance: which is a number.
        return distances.masked_fill(neighbours < 0, torch.nan), neighbours

    def _on_cpu(self) -> Any:
        """The index; where the embeddings lie on a GPU it is made from there, when it is needed first."""
        if self._index is None:
            count, dimension = self.vectors.shape
            self._index = type(self).of([self.vectors], count, dimension, torch.device("cpu"))._index
        return self._index


def _memory(index: Any) -> NDArray[np.float32]:
    """What a flat index holds, (N, D), where it lies; the index lives as long as the array and what is made of it."""
    held = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    return np.asarray(_Owner(index, held.__array_interface__))


class _Owner:
    """What NumPy takes an array from, and keeps for as long as the array is there."""

    def __init__(self, index: Any, interface: dict[str, Any]) -> None:
        self.index = index
        self.__array_interface__ = interface


_of_thread = threading.local()


def _gpu_resources() -> Any:
    """FAISS's scratch memory of the calling thread."""
    if not hasattr(_of_thread, "resources"):
        _of_thread.resources = faiss.StandardGpuResources()
    return _of_thread.resources


class BankDensity(Density):
    """A density whose score is computed from the embeddings that it was fitted on.

    Attributes:
        bank: they; from ``fit`` on.
    """

    bank: Bank

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.bank.save(folder)

    def restore(self, folder: Path) -> Self:
        self.bank = Bank.load(folder, self.device)
        return super().restore(folder)

    def extended(self, X: NDArray[np.float32]) -> Self:
        """A density whose bank has more embeddings; all else that was learned, such as a kernel's width, is the same.

        Args:
            X: (n, D) finite embeddings.

        Raises:
            ValueError: if X is not that.
        """
        if X.ndim != 2 or X.shape[1] != self.dimension:
            raise ValueError(f"expected embeddings (n, {self.dimension}), not an array of shape {X.shape}")
        if not np.isfinite(X).all():
            raise ValueError(NOT_FINITE)
        more = type(self)(self.configuration, self.device)
        added = torch.from_numpy(X.astype(np.float32)).to(self.device)
        old = self._ready_for(added)
        rows = old._rows(added)
        more.bank = Bank.of([old.bank.vectors, rows], len(old.bank) + len(rows), rows.shape[1], self.device)
        more._adopt({**old.state, **old._counted(len(rows)), **more._of_bank()})
        return more

    def _ready_for(self, X: Tensor) -> Self:
        """What scores as this does, and can have embeddings (n, D) in its bank."""
        return self

    def _rows(self, X: Tensor) -> Tensor:
        """Embeddings (n, D) as the bank has them."""
        return X

    def _counted(self, more: int) -> dict[str, Tensor]:
        """What changes in the state with so many embeddings more in the bank."""
        return {"samples": torch.tensor(self.samples + more)}

    def _of_bank(self) -> dict[str, Tensor]:
        """What it learns of the bank alone, anew when that grows."""
        return {}

    def _fit(self, X: NDArray[np.float32]) -> dict[str, Tensor]:
        self.bank = Bank.of([torch.from_numpy(X)], len(X), X.shape[1], self.device)
        return {}
