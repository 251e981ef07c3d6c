"""``plumbline serve``: the process as a user starts and stops it; what it answers is tested in tests/service."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.cli.support import CATEGORY, COMPUTE, PROGRAM, Outcome
from tests.service.support import is_ready, wait_until


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_serve_until_it_is_stopped(data: Path, models: Path, number: signal.Signals) -> None:
    image = next((data / CATEGORY / "test" / "good").iterdir())
    command = [str(PROGRAM), "serve", "--models", str(models), "--port", "0", "--records", "none", *COMPUTE, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = json.loads(process.stderr.readline())["url"]
            wait_until(lambda: is_ready(url))
            answer = httpx.post(
                f"{url}/v1/categories/{CATEGORY}/score",
                content=image.read_bytes(),
                headers={"Content-Type": "image/png"},
                timeout=60,
            )
            assert answer.status_code == 200
            assert (answer.json()["category"], answer.json()["version"]) == (CATEGORY, 1)
        finally:
            process.send_signal(number)
            try:
                output, errors = process.communicate(timeout=120)
            finally:
                process.kill()
    assert process.returncode == 0, errors
    assert Outcome(0, output, errors).result == {"stopped": True}
