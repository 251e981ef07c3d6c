"""The client as a user installs it: a wheel of its own, in an environment without the rest."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.service.support import CATEGORY, encode, part

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def project(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return content


def test_version_and_bounds_are_those_of_plumbline() -> None:
    whole, client = project(ROOT), project(ROOT / "client")
    assert client["version"] == whole["version"]
    assert client["requires-python"] == whole["requires-python"]
    wanted = [*client["dependencies"], *client["optional-dependencies"]["progress"]]
    assert set(wanted) <= set(whole["dependencies"])


@pytest.mark.slow
def test_wheel_works_where_nothing_else_of_ours_is(url: str, tmp_path: Path) -> None:
    """Fetches httpx and pydantic, as an installation does."""
    source = shutil.copytree(ROOT / "client", tmp_path / "source")  # building leaves files beside the sources
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("plumbline_client-*.whl")
    environment = tmp_path / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    run(*pip, "--python", python, "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    (tmp_path / "part.png").write_bytes(encode(part(101, defective=True)))
    script = f"""
import importlib.util
import plumbline_client
assert not any(map(importlib.util.find_spec, ("client", "models", "torch", "faiss", "numpy", "rich")))
with plumbline_client.Client({url!r}) as client:
    print(client.score({CATEGORY!r}, "part.png").verdict)
"""
    assert run(python, "-I", "-W", "error", "-c", script, cwd=tmp_path) == "defective\n"
