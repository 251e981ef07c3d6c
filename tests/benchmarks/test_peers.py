"""The comparison with anomalib's models: against the real ones where their environment is, and the way there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.peers import PEERS, REFERENCE, measure
from tests.benchmarks.support import small_detector, write_images

ENVIRONMENT = Path(".peers/bin/python")
OURS = ("plumbline_default", "plumbline_default_look")

STAND_IN = """
import json, sys
order = json.loads(sys.stdin.readline())
print(json.dumps({"order": order}), flush=True)
for line in sys.stdin:
    name, number = json.loads(line)
    print(json.dumps({"padim_resnet18": 0.25, "efficientad_s": 1.0}[name]), flush=True)
"""


def test_theirs_are_asked_in_turns_with_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(STAND_IN)
    monkeypatch.setattr(peers, "WORKER", worker)
    images = write_images(tmp_path / "images", 2)
    asked = (REFERENCE, "efficientad_s")
    figures = measure(small_detector(), images, Path(sys.executable), threads=1, rounds=3, peers=asked)
    assert tuple(figures["milliseconds"]) == (*OURS, *asked)
    assert figures["milliseconds"]["efficientad_s"] == 1000
    assert figures["ratio_to_padim_resnet18"][REFERENCE] == 1
    assert figures["ratio_to_padim_resnet18"]["efficientad_s"] == 4
    assert figures["ratio_to_padim_resnet18"]["plumbline_default"] < 1  # a tiny one, 0.25 s
    assert all(timing["runs"] == 3 for timing in figures["timings"].values())
    assert figures["peers"]["order"]["threads"] == 1


def test_an_environment_without_anomalib_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit(3)")
    monkeypatch.setattr(peers, "WORKER", worker)
    images = write_images(tmp_path / "images", 1)
    with pytest.raises(RuntimeError, match="ended with status 3"):
        measure(small_detector(), images, Path(sys.executable), threads=1)


def test_no_environment_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.peers", "--python", "/nowhere/python"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "make peers-env" in done.stderr


@pytest.mark.parametrize("given", [("--models", "x"), ("--images", "y"), ("--models", "x", "--category", "z")])
def test_options_of_ones_own_store_belong_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", "--python", sys.executable, *given])
    with pytest.raises(SystemExit, match="2"):
        peers.main()
    assert "--models, --category and --images belong together" in capsys.readouterr().err


def test_a_folder_without_images_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = ("--models", "x", "--category", "z", "--images", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["peers", "--python", sys.executable, *own])
    with pytest.raises(SystemExit, match="2"):
        peers.main()
    assert f"{tmp_path} holds no PNG file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not ENVIRONMENT.exists(), reason="make peers-env makes the environment with anomalib")
def test_anomalib(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    figures = measure(small_detector(), images, ENVIRONMENT.absolute(), threads=1, rounds=1, fit_images=4)
    assert set(figures["milliseconds"]) == {*OURS, *PEERS}
    assert all(value > 0 for value in figures["milliseconds"].values())
    # A tenth of the patches of four images at a stride of 8.
    patches = (figures["input"][0] // 8) ** 2
    assert figures["peers"]["models"]["patchcore_resnet18"]["bank"] == [4 * round(patches / 10), 384]
