"""Faults, for real: the process killed, the disk full, the database gone and back, the clock set back."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from service import inspection
from service.records.database import DatabaseUnavailable
from service.records.journal import Journal
from service.records.writer import Writer
from tests.service.conftest import Serve
from tests.service.records.conftest import Recording
from tests.service.records.postgresql import PostgreSQL
from tests.service.records.support import SCORE, metrics, score, stored
from tests.service.support import assert_problem, encode, part, process, wait_until

CLIENTS = 4


class Load:
    """Clients that send parts to a service until they are told to stop, or it is gone.

    Attributes:
        answered: the ids of what was answered.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(CLIENTS)]
        self.answered: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        data = encode(part(7))
        with httpx.Client(base_url=self._url, timeout=60) as client, suppress(httpx.TransportError):
            while not self._stop.is_set():
                answer = client.post(SCORE, content=data, headers={"Content-Type": "image/png"})
                if answer.status_code == 200:
                    self.answered.append(answer.json()["id"])


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [str(record["id"]) for record in found]


def test_killed_under_load_no_answered_inspection_is_lost(
    recording: Recording, models: Path, records: Path, database: dict[str, str], tmp_path: Path
) -> None:
    answered: list[str] = []
    for _ in range(2):
        started = process(models, tmp_path / "log", device="cpu", records=records, **database)
        with started as (service, url), Load(url) as load:
            wait_until(lambda load=load: len(load.answered) >= 25)  # type: ignore[misc]
            service.send_signal(signal.SIGKILL)
        answered += load.answered
    with recording():
        pass
    found = ids(stored(records, database))
    assert set(answered) - set(found) == set()
    assert len(found) == len(set(found))


def test_killed_while_the_database_is_gone(
    serve: Serve, models: Path, records: Path, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    database = {"records_url": postgresql.create("killed_while_gone")}
    started = process(models, tmp_path / "log", device="cpu", records=records, **database)
    with started as (service, url), Load(url) as load:
        wait_until(lambda: len(load.answered) >= 5)
        with stopped(postgresql):
            before = len(load.answered)
            wait_until(lambda: len(load.answered) >= before + 10)
            service.send_signal(signal.SIGKILL)
            service.wait()
    options: dict[str, Any] = database
    with serve(models, records=records, **options):
        pass
    assert set(load.answered) - set(ids(stored(records, database))) == set()


def test_database_gone_and_back(serve: Serve, models: Path, records: Path, postgresql: PostgreSQL) -> None:
    database = {"records_url": postgresql.create("gone_and_back")}
    options: dict[str, Any] = database
    with serve(models, records=records, **options) as client:
        answered = [score(client).json()["id"]]
        assert client.get(f"/v1/inspections/{answered[0]}").status_code == 200
        with stopped(postgresql):
            answered += [score(client, seed).json()["id"] for seed in range(5)]
            wait_until(lambda: metrics(client)["plumbline_records_database_up"] == 0)
            assert metrics(client)["plumbline_records_journal_depth"] == 5
            refused = client.get("/v1/inspections")
            assert_problem(refused, 503, "records-unavailable", "database")
            assert refused.headers["retry-after"]
            answered.append(score(client).json()["id"])
        wait_until(lambda: metrics(client)["plumbline_records_journal_depth"] == 0)
        assert metrics(client)["plumbline_records_database_up"] == 1
        listed = client.get("/v1/inspections").json()["inspections"]
        assert [entry["id"] for entry in listed] == answered[::-1]


def test_a_service_starts_without_its_database(
    serve: Serve, models: Path, records: Path, postgresql: PostgreSQL
) -> None:
    options: dict[str, Any] = {"records_url": postgresql.create("starts_without")}
    with stopped(postgresql):
        started = serve(models, records=records, **options)
        client = started.__enter__()
        answered = score(client).json()["id"]
    try:
        wait_until(lambda: metrics(client)["plumbline_records_database_up"] == 1)
        assert client.get(f"/v1/inspections/{answered}").status_code == 200
    finally:
        started.__exit__(None, None, None)


def test_disk_full(serve: Serve, models: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk, serve(models, records=disk / "records") as client:
        answered = [score(client).json()["id"]]
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        for seed in range(100):  # what was taken from the disk before is used up first
            if (answer := score(client, seed)).status_code != 200:
                break
            answered.append(answer.json()["id"])
        assert_problem(answer, 503, "records-unavailable", "journal")
        assert answer.headers["retry-after"]
        assert metrics(client)['plumbline_record_failures_total{at="journal"}'] >= 1
        filler.unlink()
        for seed in range(5):
            answered.append(score(client, seed).json()["id"])
        wait_until(lambda: metrics(client)["plumbline_records_journal_depth"] == 0)
        listed = client.get("/v1/inspections", params={"limit": 200}).json()["inspections"]
        assert [entry["id"] for entry in listed] == answered[::-1]


def test_the_clock_set_back(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    offset = timedelta()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + offset

    monkeypatch.setattr(inspection, "datetime", Clock)
    with recording() as client:
        answered = []
        for seed in range(6):
            answered.append(score(client, seed).json()["id"])
            offset -= timedelta(hours=1)
        first = client.get("/v1/inspections", params={"limit": 4}).json()
        answered.append(score(client).json()["id"])
        second = client.get("/v1/inspections", params={"limit": 4, "cursor": first["next"]}).json()
    found = first["inspections"] + second["inspections"]
    assert [entry["id"] for entry in found] == answered[5::-1]
    times = [entry["time"] for entry in found]
    assert times == sorted(times)  # the latest inspection has the earliest time


@contextmanager
def stopped(server: PostgreSQL) -> Iterator[None]:
    """The database server is down while the block runs."""
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_what_waits_for_a_database_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise DatabaseUnavailable("it is down")

    database: Any = SimpleNamespace(migrate=fail)
    journal, synced = Journal(tmp_path / "journal", 2**20), threading.Event()
    monkeypatch.setattr(journal, "sync", synced.set)
    writer = Writer(
        journal, database, migrated=False, set_aside=tmp_path / "aside", keep_days=None, failed=lambda: None
    )
    writer.start()
    assert synced.wait(60)
    writer.stop()
    journal.close()
