"""``plumbline serve``: the process as a user starts and stops it; what it answers is tested in tests/service."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from service.settings import command_line_settings
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, COMPUTE, PROGRAM, Outcome
from tests.service.support import is_ready, wait_until


def test_help_says_every_setting_with_its_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken
    text = " ".join(run("serve", "--help").output.split())
    for name, field in command_line_settings().items():
        assert f" --{name.replace('_', '-')}" in text
        if not field.is_required() and field.default not in (None, ()):
            description = " ".join(str(field.description).split())
            assert f"{description} (default: {field.default})" in text
    assert "--device {auto,cpu,cuda} where torch" in text
    assert "--no-records-required" in text


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
