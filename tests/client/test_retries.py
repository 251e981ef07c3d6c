"""What is tried again, and what is not: against a server that answers by a script."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import pytest

from client import (
    AnswerNotUnderstood,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    PlumblineError,
    ProblemError,
    RateLimited,
    Retries,
    ServiceFault,
    Unauthorized,
    Unavailable,
)
from client.retries import Attempts
from tests.client.conftest import Connect
from tests.client.support import Answer, in_turn, problem, scripted

SCORE = {
    "id": "7b1f5ad8-8f3c-4c39-a0b5-6b0ff2ad3a41",
    "category": "plate",
    "version": 1,
    "operation": 0,
    "image_score": 1.5,
    "threshold": 2,
    "pixel_threshold": 2,
    "p_value": 0.5,
    "verdict": "good",
    "regions": [],
    "image": {"width": 3, "height": 2},
    "times": {"upload": 1, "decode": 1, "queue": 1, "score": 1, "total": 4},
    "of_a_newer_service": [1, 2],
}
GOOD = Answer(content=SCORE)
CATEGORIES = Answer(content={"categories": []})
QUICK = Retries(first_s=0.001, longest_s=0.002)
BUSY = problem(503, "queue-full", retry_after="0")
BAD_GATEWAY = Answer(502, b"<html>", {"Content-Type": "text/html"})
BROKEN = Answer(broken=True)


def test_what_is_sent(connect: Connect) -> None:
    with scripted(in_turn(GOOD)) as (url, received):
        client = connect(f"{url}/inspection/", api_key="secret", timeout_s=5)
        score = client.score("big plate", b"image", part="P 1", lot="L&2")
        client.score("plate", b"image", timeout_s=2)
    first, second = received
    assert first.target == "/inspection/v1/categories/big%20plate/score?part=P+1&lot=L%262"
    assert first.body == b"image"
    assert first.headers["authorization"] == "Bearer secret"
    assert 4 < float(first.headers["x-request-timeout"]) <= 5
    assert float(second.headers["x-request-timeout"]) <= 2
    assert score.model_extra == {"of_a_newer_service": [1, 2]}


@pytest.mark.parametrize("refusal", [BUSY, problem(429, "rate-limited", retry_after="0")])
def test_refusals_that_say_when_are_tried_again(connect: Connect, refusal: Answer) -> None:
    with scripted(in_turn(refusal, refusal, GOOD)) as (url, received):
        assert connect(url, retries=QUICK).score("plate", b"image").image_score == 1.5
    assert [request.body for request in received] == [b"image"] * 3
    left = [float(request.headers["x-request-timeout"]) for request in received]
    assert left == sorted(left, reverse=True)
    assert left[0] > left[2]


@pytest.mark.parametrize("failure", [BAD_GATEWAY, Answer(504, b""), BROKEN])
def test_what_may_have_been_done_is_repeated_only_where_that_does_no_harm(connect: Connect, failure: Answer) -> None:
    with scripted(in_turn(failure, CATEGORIES)) as (url, received):
        assert connect(url, retries=QUICK).categories() == ()
        assert len(received) == 2
    with scripted(in_turn(failure, GOOD)) as (url, received):
        with pytest.raises((Unavailable, ConnectionFailed)) as failed:
            connect(url, retries=QUICK).score("plate", b"image")
        assert len(received) == 1
        assert getattr(failed.value, "sent", True)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(400, "malformed-multipart"), InvalidRequest),
        (problem(401, "unauthorized"), Unauthorized),
        (problem(403, "forbidden"), Forbidden),
        (problem(409, "not-explainable"), Conflict),
        (problem(429, "rate-limited"), RateLimited),
        (problem(500, "internal-error", retry_after="0"), ServiceFault),
        (problem(503, "worker-unavailable"), Unavailable),
        (problem(504, "deadline"), Unavailable),
        (Answer(500, b"oops"), ServiceFault),
        (Answer(200, b"<html>", {"Content-Type": "text/html"}), AnswerNotUnderstood),
        (Answer(200, {"categories": 7}), AnswerNotUnderstood),
        (Answer(301, b"", {"Location": "/"}), AnswerNotUnderstood),
        (Answer(422, b"x", {"Content-Type": "application/problem+json"}), AnswerNotUnderstood),
    ],
)
def test_everything_else_fails_at_once(connect: Connect, answer: Answer, error: type[PlumblineError]) -> None:
    with scripted(in_turn(answer)) as (url, received):
        with pytest.raises(error) as failed:
            connect(url, retries=QUICK).categories()
        assert len(received) == 1
    if isinstance(failed.value, ProblemError):
        assert failed.value.status == answer.status
        if isinstance(answer.content, dict):
            assert (failed.value.detail, failed.value.request_id) == ("because", "4711")


def test_health_is_asked_once_and_bad_news_is_an_answer(connect: Connect) -> None:
    def reply(request: Any) -> Answer:
        name = "healthy" if request.target == "/healthz" else "ready"
        return Answer(503, {name: False, "reason": "the worker is dead", "categories": []}, {"Retry-After": "0"})

    with scripted(reply) as (url, received):
        client = connect(url, retries=QUICK)
        assert (client.health().healthy, client.health().reason) == (False, "the worker is dead")
        assert not client.ready().ready
        assert len(received) == 3


def test_a_wait_beyond_the_deadline_is_not_begun(connect: Connect) -> None:
    with scripted(in_turn(problem(503, "queue-full", retry_after="60"))) as (url, received):
        with pytest.raises(Unavailable) as failed:
            connect(url, timeout_s=20).score("plate", b"image")
        assert failed.value.retry_after_s == 60
        assert len(received) == 1


def test_a_service_that_does_not_answer(connect: Connect) -> None:
    def reply(_: Any) -> Answer:
        time.sleep(1)
        return GOOD

    with scripted(reply) as (url, received):
        with pytest.raises(DeadlineExceeded):
            connect(url, timeout_s=0.1).categories()
        assert len(received) == 1


def test_attempts_have_an_end(connect: Connect) -> None:
    with scripted(in_turn(BUSY)) as (url, received):
        with pytest.raises(Unavailable):
            connect(url, retries=Retries(attempts=3, first_s=0.001)).score("plate", b"image")
        assert len(received) == 3


def test_a_service_that_comes_up_is_reached(connect: Connect) -> None:
    with scripted(in_turn(GOOD)) as (url, _):
        pass  # its port is free now
    client = connect(url, retries=Retries(attempts=10**6, first_s=0.01, longest_s=0.01), timeout_s=120)
    with ThreadPoolExecutor(1) as pool:
        score = pool.submit(client.score, "plate", b"image")
        with scripted(in_turn(GOOD), port=int(url.rsplit(":", 1)[1])) as (_, received):
            assert score.result().image_score == 1.5
            assert len(received) == 1


class TestWaits:
    def test_double_up_to_the_longest_and_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        highest: list[float] = []

        def take(_: float, high: float) -> float:
            highest.append(high)
            return high

        monkeypatch.setattr(random, "uniform", take)
        attempts = Attempts(Retries(attempts=9, first_s=1, longest_s=5), timeout_s=1000)
        for _ in range(5):
            attempts.begin()
            attempts.wait_after(ConnectionFailed("refused", sent=False), repeatable=False)
        assert highest == [1, 2, 4, 5, 5]

    @pytest.mark.parametrize("kind", ["seconds", "date"])
    def test_are_no_shorter_than_the_service_says(self, connect: Connect, kind: str) -> None:
        header = "300" if kind == "seconds" else formatdate(time.time() + 300, usegmt=True)
        answer = problem(503, "queue-full", retry_after=header)
        with scripted(in_turn(answer)) as (url, _), pytest.raises(Unavailable) as failed:
            connect(url, retries=Retries(attempts=1)).score("plate", b"image")
        assert failed.value.retry_after_s is not None
        attempts = Attempts(Retries(), timeout_s=1000)
        attempts.begin()
        assert attempts.wait_after(failed.value, repeatable=False) >= failed.value.retry_after_s > 0

    @pytest.mark.parametrize("header", ["soon", "-1", "²"])
    def test_a_header_that_cannot_be_read_is_none(self, connect: Connect, header: str) -> None:
        answer = problem(503, "queue-full", retry_after=header)
        with scripted(in_turn(answer)) as (url, received), pytest.raises(Unavailable) as failed:
            connect(url, retries=QUICK).score("plate", b"image")
        assert failed.value.retry_after_s is None
        assert len(received) == 1
