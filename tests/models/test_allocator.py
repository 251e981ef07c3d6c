from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Prints how many pages a second block of 32 MiB takes anew, of its 8,192, after one of its size was freed.
PROGRAM = """
import resource
import numpy as np
from models.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(32 * 2**20, dtype=np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""


def faults(**environment: str) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    # Huge pages would make a single fault of 512.
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**kept, "NUMPY_MADVISE_HUGEPAGE": "0", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout)


@pytest.mark.skipif(not os.confstr_names.get("CS_GNU_LIBC_VERSION"), reason="the C library is not glibc")
def test_what_was_freed_is_taken_again_without_a_fault_unless_the_environment_says_otherwise() -> None:
    assert faults() < 100
    assert faults(MALLOC_TRIM_THRESHOLD_="131072") > 4000
