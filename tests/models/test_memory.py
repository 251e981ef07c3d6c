"""What a detector holds is counted: its arrays, each once, and nothing that is not an array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from models.densities import KernelDensityConfiguration, OneClassSVMConfiguration
from models.detector import Detector
from models.memory import array_bytes
from tests.service.support import make_detector


@dataclass(frozen=True)
class Holder:
    content: Any


def test_arrays_are_found_wherever_they_are() -> None:
    def held() -> list[Any]:
        return [np.zeros(10, np.float64), torch.zeros(5, dtype=torch.float32), "text", 7, None, np.float32(1)]

    assert array_bytes(held()) == 100
    assert array_bytes({"a": tuple(held()), "b": Holder(Holder(held()))}) == 200
    assert array_bytes(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))) == 4 * (8 + 8) + 8
    index = faiss.IndexFlatL2(4)
    index.add(np.ones((6, 4), np.float32))
    assert array_bytes(Holder(index)) == 96


def test_what_is_shared_counts_once() -> None:
    array = np.zeros(100, np.float32)
    tensor = torch.from_numpy(array)
    assert array_bytes([array, array, array[10:], tensor, tensor[5:].view(5, 19), Holder(array)]) == 400
    loop: list[Any] = [array]
    loop.append(loop)
    assert array_bytes(loop) == 400


@pytest.mark.parametrize("density", [KernelDensityConfiguration(), OneClassSVMConfiguration()])
def test_a_detector_holds_about_what_its_files_have(density: Any, tmp_path: Path) -> None:
    make_detector(density=density).save(tmp_path)
    files = sum(path.stat().st_size for path in tmp_path.iterdir() if path.name != "manifest.json")
    held = array_bytes(Detector.load(tmp_path, "cpu"))
    assert 0.9 * files < held < 1.5 * files


def test_a_bank_of_an_index_and_its_view_counts_once() -> None:
    detector = make_detector()
    (member,) = detector.scan.members
    vectors = member.density.bank.vectors  # type: ignore[attr-defined]
    bank = member.density.bank  # type: ignore[attr-defined]
    assert array_bytes(bank) == vectors.nbytes
