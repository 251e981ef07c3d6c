"""The sum of kernels in one CUDA kernel (Triton): the kernel matrix never leaves the registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERY_BLOCK, CENTRE_BLOCK, DEPTH_BLOCK = 128, 128, 64  # of the product that a program holds at once
SHARE = 4096  # centres that one program goes through


def fused_sums(scaled: Tensor, centres: Tensor, factors: Tensor) -> Tensor:
    """sum_j factors_j exp(scaled_i . centres_j), each share of the centres added up in float32.

    Args:
        scaled: (n, D) float16 or bfloat16, contiguous, on a CUDA device.
        centres: (N, D) likewise.
        factors: (N,) float32.

    Returns:
        (n,) float64.
    """
    shares = triton.cdiv(len(centres), SHARE)
    sums = scaled.new_empty(shares, len(scaled), dtype=torch.float32)
    _sums[(triton.cdiv(len(scaled), QUERY_BLOCK), shares)](
        scaled,
        centres,
        factors,
        sums,
        len(scaled),
        len(centres),
        scaled.shape[1],
        SHARE,
        QUERY_BLOCK,
        CENTRE_BLOCK,
        DEPTH_BLOCK,
        num_warps=8,
        num_stages=3,
    )
    return sums.sum(dim=0, dtype=torch.float64)


@triton.jit  # type: ignore[untyped-decorator]
def _sums(  # type: ignore[no-untyped-def]
    scaled,
    centres,
    factors,
    sums,
    queries,
    count,
    dimension,
    share: tl.constexpr,
    query_block: tl.constexpr,
    centre_block: tl.constexpr,
    depth_block: tl.constexpr,
):
    rows = tl.program_id(0) * query_block + tl.arange(0, query_block)
    depths = tl.arange(0, depth_block)
    total = tl.zeros((query_block,), tl.float32)
    for start in range(0, share, centre_block):
        columns = tl.program_id(1) * share + start + tl.arange(0, centre_block)
        products = tl.zeros((query_block, centre_block), tl.float32)
        for depth in range(0, dimension, depth_block):
            inside = depth + depths < dimension
            left = tl.load(
                scaled + rows[:, None].to(tl.int64) * dimension + depth + depths[None, :],
                mask=(rows[:, None] < queries) & inside[None, :],
                other=0.0,
            )
            right = tl.load(
                centres + columns[None, :].to(tl.int64) * dimension + depth + depths[:, None],
                mask=(columns[None, :] < count) & inside[:, None],
                other=0.0,
            )
            products = tl.dot(left, right, products)
        weights = tl.load(factors + columns, mask=columns < count, other=0.0)
        total += tl.sum(tl.exp(products) * weights[None, :], axis=1)
    tl.store(sums + tl.program_id(1) * queries + rows, total, mask=rows < queries)
