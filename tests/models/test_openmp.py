from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import pytest

# What GNU's OpenMP says of itself when torch loads it, after a verb of the program has begun.
PROGRAM = 'from cli.main import main; main(["models", "list", "--models", "/nowhere"]); import torch'


def spin_count(**environment: str) -> str | None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = {**kept, "OMP_DISPLAY_ENV": "VERBOSE", **environment}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", ran.stderr)
    return found and found[1]


@pytest.mark.skipif(platform.system() != "Linux", reason="torch's OpenMP is not GNU's")
def test_the_threads_of_torch_wait_briefly_unless_the_environment_says_otherwise() -> None:
    assert spin_count() == "20000"
    assert spin_count(GOMP_SPINCOUNT="500") == "500"
    assert spin_count(OMP_WAIT_POLICY="passive") == "0"
