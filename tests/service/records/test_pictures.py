"""Which images and heatmaps are kept, for how long, and how they come back."""

from __future__ import annotations

import io
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.records.pictures import Pictures
from service.settings import load_settings
from service.telemetry import Telemetry
from tests.service.conftest import Serve
from tests.service.records.support import metrics, score, send
from tests.service.support import HEIGHT, WIDTH, assert_problem, encode, part, wait_until

LIST = "/v1/inspections"


def outcome(client: httpx.Client, name: str, count: int) -> None:
    """Wait until so many inspections' pictures came to that."""
    wait_until(lambda: metrics(client).get(f'plumbline_pictures_total{{outcome="{name}"}}') == count)


def files(records: Path) -> list[Path]:
    return sorted(path for path in (records / "pictures").rglob("*") if path.is_file())


def kept(client: httpx.Client, answer: dict[str, Any]) -> tuple[bool, bool]:
    found = client.get(f"{LIST}/{answer['id']}").json()
    return found["image_kept"], found["heatmap_kept"]


@pytest.mark.parametrize(
    ("rule", "good", "defective"), [("all", True, True), ("defective", False, True), ("none", False, False)]
)
def test_which_are_kept(serve: Serve, models: Path, records: Path, rule: str, good: bool, defective: bool) -> None:
    with serve(models, records=records, keep_images=rule) as client:
        answers = [score(client).json(), score(client, defective=True).json()]
        if good or defective:
            outcome(client, "kept", good + defective)
        assert [kept(client, answer) for answer in answers] == [(good, good), (defective, defective)]
    assert len(files(records)) == 2 * (good + defective)


def test_pictures_come_back(serve: Serve, models: Path, records: Path) -> None:
    with serve(models, records=records) as client:
        for number, (kind, suffix) in enumerate(
            {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "TIFF": "tif", "WebP": "webp"}.items(), start=1
        ):
            data = encode(part(1, defective=True), kind)
            answer = send(client, data).json()
            assert answer["verdict"] == "defective"
            outcome(client, "kept", number)
            image = client.get(f"{LIST}/{answer['id']}/image")
            assert (image.content, image.headers["x-content-type-options"]) == (data, "nosniff")
            assert image.headers["content-type"] == f"image/{'tiff' if kind == 'TIFF' else kind.lower()}"
            heatmap = client.get(f"{LIST}/{answer['id']}/heatmap")
            assert heatmap.headers["content-type"] == "image/png"
            assert Image.open(io.BytesIO(heatmap.content)).size == (WIDTH, HEIGHT)
            assert any(path.name == f"{answer['id']}.{suffix}" for path in files(records))
        whole = client.get(f"{LIST}/{answer['id']}").json()
        assert {path.parent.name for path in files(records)} == {whole["time"][:10]}
        assert metrics(client)["plumbline_pictures_bytes"] == sum(path.stat().st_size for path in files(records))


def test_a_picture_that_is_kept_leaves_memory(serve: Serve, models: Path, records: Path) -> None:
    """What held on to the last image would refuse the next one for ever, where both are too much."""
    data = encode(part(1))
    both = len(data) + HEIGHT * WIDTH * 3
    with serve(models, records=records, keep_images="all", queue_bytes=both + 1000) as client:
        assert send(client, data).status_code == 200
        outcome(client, "kept", 1)
        wait_until(lambda: metrics(client)["plumbline_queue_bytes"] == 0, seconds=20)
        assert send(client, data).status_code == 200


def test_pictures_that_are_not_kept(serve: Serve, models: Path, records: Path) -> None:
    with serve(models, records=records) as client:
        answer = score(client).json()
        for what in ("image", "heatmap"):
            assert_problem(
                client.get(f"{LIST}/{answer['id']}/{what}"), 404, "picture-not-kept", what, "PLUMBLINE_KEEP_IMAGES"
            )


def test_the_oldest_go_when_there_are_too_many_bytes(serve: Serve, models: Path, records: Path) -> None:
    size = len(encode(part(1, defective=True)))
    with serve(models, records=records, keep_bytes=8 * size) as client:
        answers = []
        for seed in range(10):
            answers.append(score(client, seed, defective=True).json())
            outcome(client, "kept", seed + 1)
        wait_until(lambda: sum(path.stat().st_size for path in files(records)) <= 8 * size)
        remaining = [kept(client, answer) for answer in answers]
    assert remaining[0] == (False, False)
    assert remaining[-1] == (True, True)
    assert remaining == sorted(remaining)


def test_old_days_and_half_written_files_go(serve: Serve, models: Path, records: Path) -> None:
    old, young = records / "pictures" / "2020-01-01", records / "pictures" / time.strftime("%Y-%m-%d", time.gmtime())
    notes = records / "pictures" / "notes"
    for folder in (old, young, notes):
        folder.mkdir(parents=True)
        (folder / "x.png").touch()
        (folder / "y.png.new").touch()
    with serve(models, records=records, keep_days=7):
        wait_until(lambda: not old.exists() and not (young / "y.png.new").exists())
    assert sorted(path.name for path in (records / "pictures").iterdir()) == [young.name, "notes"]
    assert sorted(path.name for path in notes.iterdir()) == ["x.png", "y.png.new"]
    assert [path.name for path in young.iterdir()] == ["x.png"]


def test_a_picture_is_kept_for_so_many_days_and_goes_with_its_heatmap(models: Path, records: Path) -> None:
    pictures = Pictures(records, load_settings(models=models, keep_days=7, keep_bytes=500), Telemetry())
    last, before, today = (
        records / (datetime.now(UTC).date() - timedelta(days=days)).isoformat() for days in (7, 8, 0)
    )
    for folder in (last, before, today):
        folder.mkdir()
    (last / "a.png").write_bytes(b"x" * 100)
    (last / "a.heatmap.png").write_bytes(b"x" * 10)
    (today / "b.png").write_bytes(b"x" * 300)
    pictures._sweep()
    assert sorted(path.name for path in records.rglob("*.png")) == ["a.heatmap.png", "a.png", "b.png"]
    assert not before.exists()
    (today / "c.png").write_bytes(b"x" * 150)
    pictures._sweep()  # 560 bytes; without the oldest image alone they would be few enough
    assert sorted(path.name for path in records.rglob("*.png")) == ["b.png", "c.png"]


def test_where_little_is_free_no_picture_is_kept(serve: Serve, models: Path, records: Path) -> None:
    with serve(models, records=records, keep_free_bytes=2**60) as client:
        answer = score(client, defective=True).json()
        outcome(client, "no_space", 1)
        assert kept(client, answer) == (False, False)


def test_a_folder_that_takes_no_picture_is_counted(serve: Serve, models: Path, records: Path) -> None:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    with serve(models, records=records) as client:
        for name in (day, time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400))):
            (records / "pictures" / name).touch()
        assert score(client, defective=True).status_code == 200
        outcome(client, "failed", 1)
        assert score(client, defective=True).status_code == 200
        outcome(client, "failed", 2)


def test_what_waits_to_be_written_leaves_room_for_images(models: Path, records: Path) -> None:
    """What waits counts as held by the service, which refuses images where too much is."""
    telemetry = Telemetry()
    pictures = Pictures(records, load_settings(models=models, queue_bytes=4000, keep_images="all"), telemetry)
    submission = SimpleNamespace(data=b"x" * 100)
    waiting: Any = SimpleNamespace(submission=submission, image=np.zeros((10, 10, 3), np.uint8), shadow_of=None)
    for _ in range(5):
        pictures.take(waiting)  # its thread has not begun
    assert telemetry.registry.get_sample_value("plumbline_pictures_total", {"outcome": "busy"}) == 3
