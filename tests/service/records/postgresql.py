"""A real PostgreSQL server in a temporary folder, on a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import psycopg


class PostgreSQL:
    """A server that is initialised when entered, can be stopped and started again, and leaves nothing behind."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="plumbline-postgresql-"))
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self._root, self._user)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be run here; None where it can."""
        if _program("initdb") is None:
            return "PostgreSQL is not installed: apt-get install postgresql"
        if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            return "PostgreSQL does not run as root, and there is no user 'postgres'"
        return None

    def __enter__(self) -> Self:
        self._run("initdb", "--auth=trust", "--username=plumbline", "--encoding=UTF8", "--no-sync")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._root)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -k {self._root} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-w", "-t", "120", "-l", str(self._root / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, connections and all."""
        self._run("pg_ctl", "-m", "immediate", "stop")

    def create(self, name: str) -> str:
        """Create a database, and give its URL."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://plumbline@127.0.0.1:{self.port}/{name}"

    def _run(self, name: str, *arguments: str) -> None:
        program = _program(name)
        assert program is not None
        subprocess.run(
            [program, "-D", str(self._root / "data"), *arguments],
            user=self._user,
            cwd=self._root,
            stdout=subprocess.DEVNULL,
            check=True,
        )


def _program(name: str) -> str | None:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return shutil.which(name, path=os.pathsep.join([*map(str, reversed(versions)), os.environ["PATH"]]))
