"""What a page of inspections costs where there are many: steps of SQLite's machine, which no busy computer changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert

from service.records import queries
from service.records.database import Database, database_in
from service.records.tables import inspections, reviews

MANY = 20_000
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
FEW_STEPS = 60_000  # three for each record that there is; reading one takes more than ten


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Records of two categories, one a minute, of which the oldest has been reviewed."""
    database = database_in(tmp_path_factory.mktemp("many"), None)
    database.migrate()
    rows = [row(number) for number in range(MANY)]
    with database.begin() as connection:
        connection.execute(insert(inspections), rows)
        judged = {"inspection": rows[0]["id"], "time": BEGIN, "caller": "me", "verdict": "good", "note": None}
        connection.execute(insert(reviews), judged)
    yield database
    database.close()


def row(number: int) -> dict[str, Any]:
    return {
        "id": UUID(int=number),
        "time": BEGIN + timedelta(minutes=number),
        "category": "cable" if number % 2 else "bottle",
        "version": 1,
        "operation": 0,
        "shadow_of": None,
        "image_sha256": "0" * 64,
        "image_width": 8,
        "image_height": 8,
        "image_score": 0.5,
        "p_value": 0.5,
        "verdict": "defective" if number == 10 else "good",
        "image_threshold": 1.0,
        "pixel_threshold": 1.0,
        "regions": [],
        "part": f"part-{number}",
        "lot": f"lot-{number // 100}",
        "caller": "me",
        "protocol": "plumbline",
        "output": "score",
        "times": {},
    }


def minute(number: int) -> str:
    return (BEGIN + timedelta(minutes=number)).isoformat()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, 50),
        ({"category": "cable"}, 50),
        ({"category": "screw"}, 0),
        ({"verdict": "defective"}, 1),
        ({"verdict": "invalid"}, 0),
        ({"category": "bottle", "verdict": "defective"}, 1),
        ({"category": "cable", "verdict": "review"}, 0),
        ({"part": "part-3"}, 1),
        ({"lot": "lot-3", "category": "cable"}, 50),
        ({"since": minute(MANY - 7)}, 7),
        ({"category": "cable", "since": minute(MANY - 7)}, 4),
        ({"until": minute(7)}, 7),
        ({"since": minute(100), "until": minute(120)}, 20),
        ({"category": "bottle", "since": minute(100), "until": minute(120)}, 10),
        ({"reviewed": True}, 1),
        ({"category": "bottle", "reviewed": True}, 1),
        ({"reviewed": False, "verdict": "defective"}, 1),
        ({"shadow": True}, 0),
        ({"category": "cable", "shadow": True}, 0),
    ],
)
def test_a_page_reads_few_of_many_records(
    database: Database, asked: dict[str, Any], expected: int, steps: dict[str, int]
) -> None:
    with database.begin() as connection:
        begin_counting(connection.connection.dbapi_connection, steps)
        found, _ = queries.page(connection, queries.Filters(**asked), queries.LARGEST_SEQUENCE, 50)
        connection.connection.dbapi_connection.set_progress_handler(None, 0)  # type: ignore[union-attr]
    assert len(found) == expected
    assert steps["taken"] < FEW_STEPS


@pytest.fixture
def steps() -> dict[str, int]:
    return {"taken": 0}


def begin_counting(connection: Any, steps: dict[str, int]) -> None:
    def count() -> int:
        steps["taken"] += 100
        return 0

    connection.set_progress_handler(count, 100)


def test_a_span_of_many_records_is_still_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "_SHORT", 10)
    filters = queries.Filters(since=minute(100), until=minute(120))
    with database.begin() as connection:
        found, _ = queries.page(connection, filters, queries.LARGEST_SEQUENCE, 50)
    assert [one.id.int for one in found] == list(range(119, 99, -1))
