"""Inspections read back over HTTP, and reviewed, from each kind of database."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from service.api import inspections
from tests.service.conftest import Serve
from tests.service.records.conftest import Recording, database_of
from tests.service.records.support import score
from tests.service.support import CATEGORY, HEIGHT, WIDTH, assert_problem

LIST = "/v1/inspections"
EVIL = "=cmd|' /C calc'!A0"


@pytest.fixture
def client(recording: Recording) -> Iterator[httpx.Client]:
    with recording() as started:
        yield started


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(
    request: pytest.FixtureRequest, serve: Serve, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """One server for all tests that leave nothing in it."""
    options: dict[str, Any] = database_of(request.param, request)
    with serve(models, records=tmp_path_factory.mktemp("records"), **options) as started:
        yield started


def listed(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(LIST, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["inspections"]
    return found


def numbers(found: list[dict[str, Any]]) -> list[str]:
    return [entry["part"] for entry in found]


def review(client: httpx.Client, inspection: str, **judgement: Any) -> httpx.Response:
    return client.post(f"{LIST}/{inspection}/review", json=judgement)


def test_what_was_just_answered_is_found(client: httpx.Client) -> None:
    for seed in range(5):
        answer = score(client, seed, defective=seed % 2 == 1).json()
        found = client.get(f"{LIST}/{answer['id']}").json()
        for name in ("id", "category", "version", "image_score", "p_value", "verdict", "regions", "times"):
            assert found[name] == answer[name], name
        assert (found["image_threshold"], found["reviews"]) == (answer["threshold"], [])
        assert (found["image_width"], found["image_height"]) == (WIDTH, HEIGHT)
        assert listed(client)[0]["id"] == answer["id"]


def test_filters(client: httpx.Client) -> None:
    before = datetime.now(UTC)
    answers = [
        score(client, seed + 6, defective=seed > 2, part=str(seed), lot="A" if seed % 2 else "B").json()
        for seed in range(5)
    ]
    assert numbers(listed(client)) == ["4", "3", "2", "1", "0"]
    assert numbers(listed(client, verdict="defective", lot="A")) == ["3"]
    assert numbers(listed(client, part="2")) == ["2"]
    assert numbers(listed(client, category=CATEGORY, version=1, limit=1)) == ["4"]
    assert listed(client, category="other") == listed(client, version=2) == listed(client, shadow=True) == []
    assert numbers(listed(client, min_score=answers[3]["image_score"], verdict="defective"))[-1] == "3"
    middle = client.get(f"{LIST}/{answers[2]['id']}").json()["time"]
    assert numbers(listed(client, since=middle)) == ["4", "3", "2"]
    assert numbers(listed(client, until=middle)) == ["1", "0"]
    assert listed(client, until=before.isoformat()) == []
    zone = (datetime.fromisoformat(middle).astimezone(UTC) + timedelta(hours=5)).replace(tzinfo=None)
    assert numbers(listed(client, until=f"{zone.isoformat()}+05:00")) == ["1", "0"]
    review(client, answers[1]["id"], verdict="good")
    assert numbers(listed(client, reviewed=True)) == ["1"]
    assert numbers(listed(client, reviewed=False)) == ["4", "3", "2", "0"]


def test_pages_show_each_once_while_more_come(client: httpx.Client) -> None:
    for seed in range(7):
        score(client, seed, part=str(seed))
    seen, cursor = [], None
    while True:
        page = client.get(LIST, params={"limit": 3} | ({} if cursor is None else {"cursor": cursor})).json()
        seen += numbers(page["inspections"])
        score(client, 9, part="late")
        if (cursor := page.get("next")) is None:
            break
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]


@pytest.mark.parametrize(
    ("query", "mention"),
    [
        ({"verdict": "perfect"}, "verdict"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "1 to 9999"),
        ({"until": "0.5"}, "no date and time"),
        ({"until": "9999-12-31T23:59:59-14:00"}, "1 to 9999"),
        ({"min_score": "nan"}, "min_score"),
        ({"min_score": "inf"}, "min_score"),
        ({"version": 2**31}, "version"),
        ({"cursor": 2**63}, "cursor"),
        ({"cursor": 0}, "cursor"),
        ({"limit": 201}, "limit"),
        ({"part": "a\0b"}, "part"),
        ({"lots": "A"}, "lots"),
        ({"format": "xml"}, "format"),
    ],
)
def test_wrong_filters(shared: httpx.Client, query: dict[str, Any], mention: str) -> None:
    assert_problem(shared.get(LIST, params=query), 422, "invalid-request", mention)


def test_largest_values_are_taken(shared: httpx.Client) -> None:
    assert (
        listed(
            shared, category="none", version=2**31 - 1, cursor=2**63 - 1, min_score=-1e308, since="0001-01-02T00:00:00Z"
        )
        == []
    )


@pytest.mark.parametrize("asked", [{"params": {"format": "csv"}}, {"headers": {"Accept": "text/csv"}}])
def test_csv_holds_all_that_match_and_no_formula(client: httpx.Client, asked: dict[str, Any]) -> None:
    first = score(client, 1, part=EVIL, lot='a "quoted", lot').json()
    score(client, 2, defective=True, part="2")
    review(client, first["id"], verdict="good", note="\uff1dtext")
    answer = client.get(LIST, **asked)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    later, earlier = csv.DictReader(io.StringIO(answer.text))
    assert (later["part"], later["reviewed_verdict"]) == ("2", "")
    assert earlier["part"] == f"'{EVIL}"
    assert earlier["lot"] == 'a "quoted", lot'
    assert (earlier["reviewed_verdict"], earlier["reviewed_note"]) == ("good", "'\uff1dtext")
    assert float(earlier["image_score"]) == first["image_score"]
    assert float(earlier["total_ms"]) == first["times"]["total"]
    assert earlier["id"] == first["id"]


def test_csv_of_many_pages(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspections, "_CSV_PAGE", 2)
    for seed in range(5):
        score(client, seed, part=str(seed))
    answer = client.get(LIST, params={"format": "csv"})
    assert [row["part"] for row in csv.DictReader(io.StringIO(answer.text))] == ["4", "3", "2", "1", "0"]


def test_every_review_is_kept_and_the_latest_counts(client: httpx.Client) -> None:
    inspection = score(client).json()["id"]
    answer = review(client, inspection, verdict="defective", note="scratch")
    assert answer.status_code == 201
    assert (answer.json()["verdict"], answer.json()["caller"]) == ("defective", "anonymous")
    review(client, inspection, verdict="good")
    reviews = client.get(f"{LIST}/{inspection}").json()["reviews"]
    assert [(entry["verdict"], entry.get("note")) for entry in reviews] == [("good", None), ("defective", "scratch")]
    (entry,) = listed(client)
    assert entry["review"] == reviews[0]
    assert (entry["verdict"], "regions" in entry) == ("good", False)


@pytest.mark.parametrize(
    ("content", "mention"),
    [
        (b'{"verdict": "maybe"}', "body.verdict"),
        (b'{"verdict": "good", "note": "a\\u0000b"}', "body.note"),
        (b'{"verdict": "good", "note": "\\ud800"}', "body"),
        (json.dumps({"verdict": "good", "note": "x" * 2001}).encode(), "body.note"),
        (b'{"verdict": "good", "who": "me"}', "body.who"),
        (b"{", "body"),
        (b"", "body"),
        (b"\xff", "body"),
        (b"[" * 100_000, "body"),
    ],
)
def test_wrong_reviews(shared: httpx.Client, content: bytes, mention: str) -> None:
    inspection = score(shared).json()["id"]
    answer = shared.post(f"{LIST}/{inspection}/review", content=content, headers={"Content-Type": "application/json"})
    assert_problem(answer, 422, "invalid-request", mention)
    assert shared.get(f"{LIST}/{inspection}").json()["reviews"] == []


def test_a_review_too_long_to_read(shared: httpx.Client) -> None:
    answer = shared.post(f"{LIST}/{uuid4()}/review", content=b" " * (2**20 + 1))
    assert_problem(answer, 413, "upload-too-large", "1048576")


def test_what_is_not_there(shared: httpx.Client) -> None:
    nobody = uuid4()
    for path in ("", "/image", "/heatmap"):
        assert_problem(shared.get(f"{LIST}/{nobody}{path}"), 404, "unknown-inspection", str(nobody))
    assert_problem(review(shared, str(nobody), verdict="good"), 404, "unknown-inspection", str(nobody))
    for wrong in ("7", "..", "%2e%2e%2fetc", "a" * 500):
        assert shared.get(f"{LIST}/{wrong}/image").status_code in (404, 422)


def test_where_nothing_is_recorded(serve: Serve, models: Path) -> None:
    with serve(models) as client:
        for path in ("", f"/{uuid4()}", f"/{uuid4()}/image"):
            assert_problem(client.get(f"{LIST}{path}"), 404, "records-off", "PLUMBLINE_RECORDS")
