"""What of the waiting work begins next, without any thread."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from models.detector import Detector
from models.scan import Scan
from service.line import DeadlineUnmet, Image, Job, Line, Released, Work
from service.pace import Pace
from tests.service.support import make_detector

PIXELS = np.zeros((1, 1, 3), np.uint8)


@pytest.fixture(scope="module")
def detectors() -> tuple[Detector, Detector]:
    return make_detector("one"), make_detector("other")


def image(detector: Detector, *, left_s: float = 60, takes_s: float = 0.0) -> Image:
    pace = Pace()
    if takes_s:
        pace.note(takes_s)
        pace.note(takes_s)
    return Image(pace, detector, PIXELS, time.monotonic() + left_s)


def filled(line: Line, *works: Work) -> Line:
    for work in works:
        line.add(work)
    return line


def error_of(future: Future[Any]) -> BaseException | None:
    return future.exception(timeout=0)


def test_images_of_one_detector_are_a_batch_and_the_oldest_begins(detectors: tuple[Detector, Detector]) -> None:
    one, other = detectors
    works = [image(one), image(other), image(one), image(other), image(one)]
    line = filled(Line(8, 0), *works)
    assert line.images == 5
    assert line.take() == ([works[0], works[2], works[4]], Released.IDLE)
    assert line.take() == ([works[1], works[3]], Released.IDLE)
    assert line.take() == ([], None)
    assert line.patience_s() is None


def test_a_busy_detector_does_not_starve_another(detectors: tuple[Detector, Detector]) -> None:
    one, other = detectors
    line = filled(Line(2, 0), *[image(one) for _ in range(6)])
    line.take()
    late = image(other)
    line.add(late)
    begun = []
    for _ in range(6):
        line.add(image(one))
        begun += line.take()[0]
    assert begun.index(late) == 4  # the four that were there before it, and none that came later


def test_a_full_batch_is_taken_as_such(detectors: tuple[Detector, Detector]) -> None:
    works = [image(detectors[0]) for _ in range(5)]
    line = filled(Line(2, 3600), *works)
    assert line.take() == (works[:2], Released.FULL)
    assert line.take() == (works[2:4], Released.FULL)
    assert line.take() == ([], None)
    patience = line.patience_s()
    assert patience is not None
    assert 0 < patience <= 3600
    works[4].queued_at -= 3000
    line.add(image(detectors[0]))
    assert (line.patience_s() or 0) <= 600  # that of the oldest


def test_an_image_waits_for_others_but_delays_nobody(detectors: tuple[Detector, Detector]) -> None:
    one, other = detectors
    waiting = image(one)
    job = Job(Pace(), lambda: None)
    full = [image(other), image(other)]
    line = filled(Line(2, 3600), waiting, *full, job)
    assert line.take() == (full, Released.FULL)
    assert line.take() == ([job], None)
    assert line.take() == ([], None)
    waiting.queued_at -= 3600
    assert line.take() == ([waiting], Released.WAITED)


def test_a_job_has_its_turn(detectors: tuple[Detector, Detector]) -> None:
    first, job, second = image(detectors[0]), Job(Pace(), lambda: None), image(detectors[1])
    line = filled(Line(8, 0), first, job, second)
    assert [line.take()[0] for _ in range(3)] == [[first], [job], [second]]


def test_who_joins_is_the_oldest_while_it_is_an_image(
    detectors: tuple[Detector, Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = detectors
    past, left, first, second, job = image(one, left_s=-1), image(one), image(one), image(other), Job(Pace(), list)
    left.future.cancel()
    line = filled(Line(2, 3600), past, left, first, second, job, image(one))
    assert [line.join() for _ in range(3)] == [first, second, None]
    assert isinstance(error_of(past.future), DeadlineUnmet)
    assert line.take()[0] == [job]
    monkeypatch.setattr(Scan, "abreast", False)
    assert line.join() is None
    assert line.images == 1


def test_what_cannot_meet_its_deadline_costs_no_work(detectors: tuple[Detector, Detector]) -> None:
    one, _ = detectors
    past, hopeless, possible = image(one, left_s=-1), image(one, left_s=5, takes_s=20), image(one, takes_s=20)
    line = filled(Line(8, 0), past, hopeless, possible)
    assert line.take()[0] == [possible]
    assert isinstance(error_of(past.future), DeadlineUnmet)
    assert isinstance(error_of(hopeless.future), DeadlineUnmet)
    assert line.images == 0


def test_a_batch_is_no_larger_than_its_deadlines_allow(detectors: tuple[Detector, Detector]) -> None:
    one, _ = detectors
    works = [image(one, left_s=left_s, takes_s=20) for left_s in (60, 100, 100, 100, 100)]
    line = filled(Line(8, 0), *works)
    assert line.take()[0] == works[:2]  # three of 20 s, with a margin, would be late for the first
    assert line.take()[0] == works[2:]


def test_what_was_cancelled_does_not_begin(detectors: tuple[Detector, Detector]) -> None:
    one, _ = detectors
    left, stays = image(one), image(one)
    left.future.cancel()
    line = filled(Line(8, 0), left, stays)
    assert line.take()[0] == [stays]
    line.discard(left)
    assert line.images == 0


def test_the_line_knows_how_long_it_is(detectors: tuple[Detector, Detector]) -> None:
    one, other = detectors
    line = filled(Line(8, 0), image(one, takes_s=2), image(other, takes_s=3), Job(Pace(), lambda: None))
    assert line.seconds == 5


def test_a_pace_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace()
    assert (pace.typical_s, pace.fastest_s) == (0, 0)
    pace.note(9)
    assert (pace.typical_s, pace.fastest_s) == (9, 0)
    for seconds in (1, 2, 3):
        pace.note(seconds)
    assert (pace.typical_s, pace.fastest_s) == (2, 1)
    with monkeypatch.context() as patch:
        patch.setattr("service.pace._VALID_S", 0)
        assert (pace.typical_s, pace.fastest_s) == (0, 0)
    for _ in range(16):
        pace.note(7)
    assert (pace.typical_s, pace.fastest_s) == (7, 7)


def test_a_pace_that_ends_to_be_valid_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at a line with a part a minute: the worker must not die of it."""
    for name in ("typical_s", "fastest_s"):
        pace = Pace()
        pace.note(1)
        pace.note(1)
        times = iter([pace._noted_at + 59.999, *[pace._noted_at + 60.001] * 3])
        with monkeypatch.context() as patch:
            patch.setattr("service.pace.time.monotonic", lambda times=times: next(times))
            found = getattr(pace, name)
        assert found == 1
