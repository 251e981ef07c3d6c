"""Many images through both clients, against a running service."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from client import Client, ImageRefused, NotFound, Outcome, Retries, Unavailable, find_images
from tests.client.conftest import Connect
from tests.client.support import Answer, problem, scripted
from tests.client.test_retries import GOOD
from tests.service.support import CATEGORY, encode, part

NAMES = ["0.png", "1.png", "2.png", "b/3.JPG", "b/broken.png"]


def test_find_images(images: Path) -> None:
    assert [path.relative_to(images).as_posix() for path in find_images(images)] == NAMES
    with pytest.raises(NotADirectoryError):
        find_images(images / "0.png")


def test_order_is_kept_and_a_failure_stops_nothing(connect: Connect, url: str, images: Path) -> None:
    absent = images / "absent.png"
    given: list[Any] = [*find_images(images), absent, encode(part(0))]
    client = connect(url)
    outcomes = list(client.score_batch(CATEGORY, given, concurrency=3))
    assert [outcome.name for outcome in outcomes] == [*map(str, given[:-1]), "6"]
    expected = [client.score(CATEGORY, image).image_score for image in given[:4]]
    assert [outcome.score.image_score for outcome in outcomes[:4]] == expected
    assert outcomes[6].score.image_score == expected[0]
    assert isinstance(outcomes[4].error, ImageRefused)
    assert isinstance(outcomes[5].error, FileNotFoundError)
    assert outcomes[4].score is outcomes[5].score is None


@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_is_bounded_and_used(connect: Connect, concurrency: int) -> None:
    lock, under_way, most = threading.Lock(), 0, 0
    met = threading.Event()

    def reply(_: Any) -> Answer:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
            if most == concurrency:
                met.set()
        met.wait(60)
        with lock:
            under_way -= 1
        return GOOD

    with scripted(reply) as (url, received):
        outcomes = list(connect(url, timeout_s=120).score_batch("plate", [b"image"] * 20, concurrency=concurrency))
    assert all(outcome.score is not None for outcome in outcomes)
    assert (len(received), most) == (20, concurrency)
    with pytest.raises(ValueError, match="concurrency is 0"):
        list(connect(url).score_batch("plate", [b"image"], concurrency=0))


def test_images_are_taken_as_they_are_needed(url: str) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield encode(part(0))

    with Client(url) as client:
        outcomes = client.score_batch(CATEGORY, endless(), concurrency=2)
        assert next(outcomes).name == "0"
        outcomes.close()
    assert taken <= 5


def lines(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
class TestFolder:
    def test_writes_a_line_an_image(
        self, connect: Connect, url: str, images: Path, tmp_path: Path, ending: str
    ) -> None:
        out, told = tmp_path / f"scores.{ending}", []
        client = connect(url)
        summary = client.score_folder(CATEGORY, images, out, progress=lambda *counts: told.append(counts))
        assert (summary.scored, summary.skipped) == (4, 0)
        assert sum(summary.verdicts.values()) == 4
        assert [outcome.name for outcome in summary.failed] == ["b/broken.png"]
        assert told == [(done, 5) for done in range(6)]
        rows = lines(out)
        assert [row["file"] for row in rows] == NAMES
        assert "unreadable-image" in rows[4]["error"]
        score = client.score(CATEGORY, images / "1.png")
        told_of = rows[1]["score"] if ending == "jsonl" else rows[1]
        assert float(told_of["image_score"]) == score.image_score
        assert told_of["verdict"] == score.verdict
        assert (told_of["regions"] == str(len(score.regions))) == (ending == "csv")

    @pytest.mark.parametrize("left", [1, 5, 9])
    def test_begins_again_where_its_first_line_was_cut_off(
        self, images: Path, connect: Connect, tmp_path: Path, ending: str, left: int
    ) -> None:
        out = tmp_path / f"scores.{ending}"
        with scripted(lambda _: GOOD) as (url, _):
            client = connect(url)
            client.score_folder("plate", images, out)
            out.write_bytes(out.read_bytes()[:left])
            assert client.score_folder("plate", images, out).scored == 5
        assert [row["file"] for row in lines(out)] == NAMES

    @pytest.mark.parametrize("cut", [0, 1, 9])
    def test_goes_on_where_it_was_stopped(
        self, connect: Connect, url: str, images: Path, tmp_path: Path, ending: str, cut: int
    ) -> None:
        """After any number of lines, the last perhaps torn."""
        out = tmp_path / f"scores.{ending}"
        client = connect(url)
        client.score_folder(CATEGORY, images, out)
        whole = out.read_bytes()
        kept = whole.splitlines(keepends=True)[: 2 + (ending == "csv")]
        out.write_bytes(b"".join(kept)[: None if cut == 0 else -cut])
        summary = client.score_folder(CATEGORY, images, out)
        assert summary.skipped == 2 - (cut > 0)
        assert summary.scored == 4 - summary.skipped
        assert [row["file"] for row in lines(out)] == NAMES
        before = out.read_bytes()
        assert client.score_folder(CATEGORY, images, out).skipped == 5
        assert out.read_bytes() == before

    def test_what_the_service_could_not_do_is_left_for_the_next_run(
        self, connect: Connect, images: Path, tmp_path: Path, ending: str
    ) -> None:
        busy = True

        def reply(_: Any) -> Answer:
            return problem(503, "worker-unavailable") if busy else GOOD

        out = tmp_path / f"scores.{ending}"
        with scripted(reply) as (url, _):
            client = connect(url, retries=Retries(attempts=1))
            summary = client.score_folder("plate", images, out)
            assert len(summary.failed) == 5
            assert all(isinstance(outcome.error, Unavailable) for outcome in summary.failed)
            assert lines(out) == []
            busy = False
            assert client.score_folder("plate", images, out).scored == 5

    def test_what_stops_one_image_stops_all(
        self, connect: Connect, url: str, images: Path, tmp_path: Path, ending: str
    ) -> None:
        out = tmp_path / f"scores.{ending}"
        with pytest.raises(NotFound):
            connect(url).score_folder("bottle", images, out)
        assert lines(out) == []

    def test_another_categorys_or_programs_file_is_refused(
        self, connect: Connect, images: Path, tmp_path: Path, ending: str
    ) -> None:
        out = tmp_path / f"scores.{ending}"
        with scripted(lambda _: GOOD) as (url, _):
            client = connect(url)
            client.score_folder("plate", images, out)
            with pytest.raises(ValueError, match="holds scores of category 'plate', not 'other'"):
                client.score_folder("other", images, out)
            for text in ("a,b\n1,2\n", "a,b\n1,2", "a,b\n", "a,b", "[1]"):  # nothing of it is lost
                out.write_text(text)
                with pytest.raises(ValueError, match="was not written by this program"):
                    client.score_folder("plate", images, out)
                assert out.read_text() == text


def test_output_of_another_kind(connect: Connect, url: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.jsonl or \.csv"):
        connect(url).score_folder(CATEGORY, images, tmp_path / "scores.txt")


def test_progress_bar(url: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(url) as client:
        client.score_folder(CATEGORY, images, progress=True)
    assert "5/5" in capsys.readouterr().err


def test_outcome_has_a_score_or_an_error(url: str) -> None:
    with Client(url) as client:
        (outcome,) = client.score_batch(CATEGORY, [b""])
    assert outcome == Outcome("0", error=outcome.error)
