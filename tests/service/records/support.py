"""What the tests of records share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from service.records.database import Database, database_in
from service.records.tables import inspections
from tests.service.support import CATEGORY, encode, part

SCORE = f"/v1/categories/{CATEGORY}/score"


def score(client: httpx.Client, seed: int = 7, *, defective: bool = False, **labels: str) -> httpx.Response:
    """Send a part to be scored."""
    return send(client, encode(part(seed, defective=defective)), **labels)


def send(client: httpx.Client, data: bytes, **labels: str) -> httpx.Response:
    """Send an image file to be scored."""
    return client.post(SCORE, params=labels, content=data, headers={"Content-Type": "image/png"})


def stored(folder: Path, settings: dict[str, str]) -> list[dict[str, Any]]:
    """Every inspection in the database of a service, in their order."""
    with opened(folder, settings) as database, database.begin() as connection:
        query = select(inspections).order_by(inspections.c.sequence)
        return [dict(row._mapping) for row in connection.execute(query)]


@contextmanager
def opened(folder: Path, settings: dict[str, str]) -> Iterator[Database]:
    """The database of a service, beside it."""
    database = database_in(folder, settings.get("records_url"))
    yield database
    database.close()


def metrics(client: httpx.Client) -> dict[str, float]:
    """What /metrics says, by name and labels."""
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
