from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Prints what share of a second block of 16 MiB is taken anew after one of its size was freed, in a thread of its own.
PROGRAM = """
import ctypes, resource, sys, threading
import numpy as np

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page is one fault of many pages

if sys.argv[1] == "called":
    from models.allocator import keep_freed_memory
    keep_freed_memory()
else:
    from cli.main import main
    assert main(["models", "list", "--models", "/nowhere"]) == 2

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(16 * 2**20, dtype=np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def measure():
    faults()
    print(faults() * resource.getpagesize() / (16 * 2**20))

thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


def taken_anew(how: str, **environment: str) -> float:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, how]
    ran = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=True)
    return float(ran.stdout.splitlines()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("how", ["called", "program"])
def test_what_was_freed_is_taken_again_unless_the_environment_says_otherwise(how: str) -> None:
    assert taken_anew(how) < 0.01
    assert taken_anew(how, MALLOC_TRIM_THRESHOLD_="131072") > 0.9
