"""``plumbline serve`` as a process of its own, as an operator runs it, for what measures it from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

PROGRAM = Path(sys.executable).with_name("plumbline")
_MOST_START_S = 300
_MOST_STOP_S = 120


@dataclass(frozen=True)
class Served:
    """A service that runs.

    Attributes:
        url: where it answers.
        process: to be stopped, or killed.
    """

    url: str
    process: subprocess.Popen[str]

    def resident_bytes(self) -> int:
        """Memory that the process holds now."""
        return self._status("VmRSS") * 1024

    def threads(self) -> int:
        """Threads that it has now."""
        return self._status("Threads")

    def handles(self) -> int:
        """Files, sockets and the like that it has open now."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:"))


@contextmanager
def served(models: Path, **settings: object) -> Iterator[Served]:
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
            _wait_until_ready(url)
            yield Served(url, process)
        finally:
            process.terminate()
            try:
                process.wait(_MOST_STOP_S)
            finally:
                process.kill()


def _url(log: Iterable[str]) -> str:
    """Where the service says that it listens, among the first things that it says."""
    said = []
    for line in log:
        said.append(line)
        if line.startswith("{") and "url" in (fields := json.loads(line)):
            return str(fields["url"])
    raise RuntimeError(f"the service did not start: {''.join(said)}")


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _MOST_START_S
    while True:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass  # a process listens before it answers
        if time.monotonic() > deadline:
            raise RuntimeError(f"{url} was not ready within {_MOST_START_S} s")
        time.sleep(0.05)
