"""A fault: the machine's clock steps by hours, forward and back, while a real process scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.service.support import CATEGORY, encode, part, process

LIBRARY = next(
    (path for path in map(Path, ("/usr/lib", "/usr/lib64")) for path in path.glob("**/faketime/libfaketimeMT.so.1")),
    None,
)
pytestmark = [
    pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (apt-get install faketime)"),
    pytest.mark.slow,
]

SCORE = f"/v1/categories/{CATEGORY}/score"
DRIFT = f"/v1/categories/{CATEGORY}/drift"
JUMPS = ("+0", "+6h", "-30h", "+0")


class Clock:
    """The wall clock of a process; its monotonic clock goes on as it does where an operator or NTP steps the time."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.step("+0")

    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",  # a step shows at once
        }

    def step(self, offset: str) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.replace(self._file)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def client(models: Path, tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[httpx.Client]:
    """Of a process whose wall clock is ``clock``."""
    folder = tmp_path_factory.mktemp("process")
    settings = {"device": "cpu", "records": folder / "records"}
    with process(models, folder / "log", clock.environment(), **settings) as (service, url):
        with httpx.Client(base_url=url, timeout=120) as client:
            yield client
        service.terminate()
        service.wait(60)


def test_scores_deadlines_drift_and_records_go_on(client: httpx.Client, clock: Clock) -> None:
    spread = timedelta(hours=1)
    seen: list[str] = []
    before = client.get(DRIFT).json()["window"]
    for place, offset in enumerate(JUMPS):
        clock.step(offset)
        wall = datetime.now(UTC) + timedelta(hours=float(offset.rstrip("h")))
        for seed in range(place * 10, place * 10 + 6):
            began = time.monotonic()
            answer = client.post(
                SCORE,
                content=encode(part(seed)),
                headers={"Content-Type": "image/png", "X-Request-Timeout": "60"},
                params={"part": f"{place}-{seed}"},
            )
            assert answer.status_code == 200, answer.text
            took = 1000 * (time.monotonic() - began)
            assert all(0 <= stage <= took + 1 for stage in answer.json()["times"].values())
            seen.append(answer.json()["id"])
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        # The step was real: what is recorded carries the time that the clock showed.
        recorded = client.get(f"/v1/inspections/{seen[-1]}").json()
        assert abs(datetime.fromisoformat(recorded["time"]) - wall) < spread

    report = client.get(DRIFT).json()
    assert report["rejects"]["count"] == report["window"] == before + len(seen)
    assert report["state"] == "ok"
    listed = client.get("/v1/inspections", params={"limit": len(seen)}).json()["inspections"]
    assert [one["id"] for one in reversed(listed)] == seen  # in the order they were made, whatever the clock said


def test_a_request_under_way_is_answered_across_a_step(client: httpx.Client, clock: Clock) -> None:
    """Between its head and its last byte the clock steps by a day; its deadline is seconds that pass."""
    data = encode(part(99))

    def body() -> Iterator[bytes]:
        yield data[:1000]
        clock.step("+24h")
        yield data[1000:2000]
        clock.step("-24h")
        yield data[2000:]

    answer = client.post(SCORE, content=body(), headers={"Content-Type": "image/png", "X-Request-Timeout": "60"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["times"]["total"] < 60_000
