from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# The variable is read when torch is imported, so a process of its own.
PRECISIONS = """
import torch
from models.device import keep_float32

def in_tf32():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

print(*in_tf32())
keep_float32()
print(*in_tf32())
"""


def test_float32_is_kept_where_a_container_has_products_in_tf32() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRECISIONS],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["True True", "False False"]
