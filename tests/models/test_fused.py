"""The kernel of Triton, in its interpreter on a CPU, and on CUDA where there is one."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from models.densities.kernel import LogKernelSum, Precision
from tests.models.embeddings import unit_vectors

pytest.importorskip("triton", reason="Triton comes with torch for CUDA")

# The interpreter is chosen when Triton is imported, so a process of its own.
COMPARE = """
import torch
from models.densities.kernel import LogKernelSum
from tests.models.embeddings import unit_vectors

for queries, centres, dimension in ((5, 70, 24), (130, 4096 + 130, 70)):
    Y, Q = (torch.from_numpy(unit_vectors(count, dimension, count)) for count in (centres, queries))
    weights = torch.linspace(-2, 0, centres)
    fused, plain = (LogKernelSum(Y, 10.0, weights, "float16", fused)(Q) for fused in (True, False))
    assert (fused - LogKernelSum(Y, 10.0, weights)(Q)).abs().max() < 5e-3, (queries, fused)
    assert (fused - plain).abs().max() < 5e-3, (queries, fused)
"""


def test_the_interpreted_kernel_sums_as_torch_does() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_fused_sum_in_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="precision"):
        LogKernelSum(torch.from_numpy(unit_vectors(9, 24, 0)), 10.0, fused=True)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_kernel_on_cuda_sums_as_torch_does(precision: Precision) -> None:
    Y, Q = (torch.from_numpy(unit_vectors(count, 512, count)).cuda() for count in (70_000, 3000))
    fused, plain = (LogKernelSum(Y, 10.0, None, precision, fused)(Q).cpu().numpy() for fused in (True, False))
    np.testing.assert_allclose(fused, plain, rtol=0, atol=1e-4)
