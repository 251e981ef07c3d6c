"""``plumbline serve`` as a process of its own, as an operator runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.service.support import is_ready, wait_until

PROGRAM = Path(sys.executable).with_name("plumbline")


@dataclass(frozen=True)
class Process:
    """A service that runs.

    Attributes:
        url: where it answers.
        process: to be stopped, or killed.
    """

    url: str
    process: subprocess.Popen[str]

    def resident_bytes(self) -> int:
        """Memory that the process holds now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096


@contextmanager
def served(models: Path, **settings: object) -> Iterator[Process]:
    """Run ``plumbline serve`` on a free port of this machine until the block ends, ready from its beginning.

    Args:
        models: the model store.
        settings: the service's, by name.
    """
    given = {"models": models, "port": 0, "device": "cpu", "threads": 1, **settings}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [str(PROGRAM), "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = _url(process.stderr)
            # A pipe that nobody reads fills up, and the service would wait.
            threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
            wait_until(lambda: is_ready(url))
            yield Process(url, process)
        finally:
            process.terminate()
            try:
                process.wait(120)
            finally:
                process.kill()


def _url(log: Iterable[str]) -> str:
    """Where the service says that it listens, among the first things that it says."""
    said = []
    for line in log:
        said.append(line)
        if line.startswith("{") and "url" in (fields := json.loads(line)):
            return str(fields["url"])
    raise AssertionError(f"the service did not start: {''.join(said)}")
