"""Running the command line, in this process or as the installed program, and what its tests share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cli.main import main

PROGRAM = Path(sys.executable).with_name("plumbline")
CATEGORY = "tile"
COMPUTE = ("--device", "cpu", "--threads", "1")
# A detector that is made in seconds and knows nothing.
TINY = ("--width", "2", "--steps", "6", "--batch-size", "4", "--crop-patches", "1", "--bank-size", "200", *COMPUTE)


class Outcome(NamedTuple):
    status: int
    output: str
    errors: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object that the last line of standard output is, and no other line."""
        *before, last = self.output.splitlines()
        content = json.loads(last)
        assert isinstance(content, dict)
        assert not any(is_json_object(line) for line in before)
        return content

    def assert_refused(self, status: int, *mentions: str) -> None:
        """One sentence about what was wrong, which with ``--json`` is the result as well, and nothing else."""
        assert "Traceback" not in self.errors
        assert self.status == status, self.errors
        sentence = self.errors.splitlines()[-1]
        assert sentence.startswith("plumbline")
        assert len(sentence) > len("plumbline: ") + 10
        for mention in mentions:
            assert mention in sentence
        if self.output:
            assert self.result == {"error": sentence.removeprefix("plumbline: ")}
            assert len(self.output.splitlines()) == 1


def files_in(folder: Path) -> list[Path]:
    """What lies under a folder, if there is one; the locks of who writes there aside."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def run_program(*arguments: str | Path, cwd: Path | None = None, seconds: float = 300) -> Outcome:
    """The console script, in a process of its own, for ``seconds`` at most."""
    result = subprocess.run(
        [PROGRAM, *arguments], cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False
    )
    return Outcome(result.returncode, result.stdout, result.stderr)


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Outcome:
    """The same in this process."""
    capsys.readouterr()
    status: Any
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:  # how argparse ends
        status = end.code
    return Outcome(status, *capsys.readouterr())
