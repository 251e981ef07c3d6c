"""The script for a host with a GPU, with a stand-in for the program: what it asks for first, and what a step leaves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_speed.sh"
STAND_IN = """
echo "$*" >>"$ASKED"
case "$*" in
  "benchmark predict --device cuda --folder "*"/detector --json --batches 1 32") mkdir -p "$6/dense_patch-1/models" ;;
  *resnet18_patch*) echo "no memory" >&2; exit 3 ;;
  "benchmark kde "*679000) exec sleep 30 ;;
esac
echo '{}'
"""


def test_what_matters_most_is_first_and_a_step_leaves_the_others(tmp_path: Path) -> None:
    program, asked, out = tmp_path / "program.sh", tmp_path / "asked", tmp_path / "out"
    program.write_text(STAND_IN)
    environment = {**os.environ, "PLUMBLINE": f"bash {program}", "ASKED": str(asked), "STEP_SECONDS": "3"}
    done = subprocess.run(["bash", SCRIPT, out], env=environment, capture_output=True, text=True, check=True)
    verbs = [" ".join(line.split()[:2]) for line in asked.read_text().splitlines()]
    assert verbs == [
        *["benchmark predict"] * 2,
        "benchmark kde",
        "tune fabric",
        "benchmark predict",
        "benchmark kde",
        "benchmark growth",
    ]
    assert f"tune fabric --models {out}/detector/dense_patch-1/models --device cuda" in asked.read_text()
    steps = dict(line.split(": status ") for line in (out / "steps.txt").read_text().splitlines())
    assert list(steps) == ["predict", "predict_resnet18_patch", "kde", "tune", "predict_tuned", "kde_small", "growth"]
    statuses = {name: int(told.split(",")[0]) for name, told in steps.items()}
    assert statuses == {**dict.fromkeys(steps, 0), "predict_resnet18_patch": 3, "kde": 124}
    assert "no memory" in done.stdout
    assert (out / "growth.txt").read_text() == "{}\n"
