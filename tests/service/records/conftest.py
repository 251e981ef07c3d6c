from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

from tests.service.conftest import Serve
from tests.service.records.postgresql import PostgreSQL


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A server of PostgreSQL, of nobody else's."""
    if (reason := PostgreSQL.missing()) is not None:
        pytest.skip(reason)
    with PostgreSQL() as server:
        yield server


def database_of(kind: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of an empty records database."""
    if kind == "sqlite":
        return {}
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return {"records_url": server.create(f"records_{uuid4().hex}")}


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of an empty records database, of each kind."""
    return database_of(request.param, request)


class Recording(Protocol):
    def __call__(self, **options: Any) -> Any: ...


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The folder of records that ``recording`` uses."""
    return tmp_path / "records"


@pytest.fixture
def recording(serve: Serve, models: Path, records: Path, database: dict[str, str]) -> Recording:
    """Start a server that records, with each kind of database: ``with recording(**settings) as client``."""

    def start(**options: Any) -> Any:
        return serve(models, **{"records": records, **database, **options})

    return start
