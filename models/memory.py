"""How much memory an object holds in arrays: what a detector costs while it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import faiss
import numpy as np
import torch


def array_bytes(holder: object) -> int:
    """Bytes of all tensors, arrays and FAISS indexes that an object leads to, on whatever device; each once.

    Memory that two of them share, as an index and a view of its vectors do, counts once too.
    """
    sizes: dict[tuple[str, int], int] = {}  # by device and address
    seen: set[int] = set()
    waiting: list[object] = [holder]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            _note(sizes, str(item.device), storage.data_ptr(), storage.nbytes())
        elif isinstance(item, np.ndarray):
            while isinstance(item.base, np.ndarray):
                item = item.base
            _note(sizes, "cpu", item.ctypes.data, item.nbytes)
        elif isinstance(item, faiss.IndexFlat):
            vectors = faiss.rev_swig_ptr(item.get_xb(), item.ntotal * item.d)
            _note(sizes, "cpu", vectors.ctypes.data, vectors.nbytes)
        else:
            waiting.extend(_parts(item))
    return sum(sizes.values())


def _note(sizes: dict[tuple[str, int], int], device: str, address: int, size: int) -> None:
    sizes[device, address] = max(size, sizes.get((device, address), 0))


def _parts(item: object) -> list[Any]:
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    return [] if isinstance(item, type | ModuleType) else list(getattr(item, "__dict__", {}).values())
