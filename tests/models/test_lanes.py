from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from models.lanes import _lanes, abreast, side_by_side
from tests.threads import torch_threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    _lanes.cache_clear()
    with torch_threads(2):
        yield


def test_as_many_as_torch_has_threads_are_done_at_once_and_the_rest_by_the_caller() -> None:
    together = threading.Barrier(2)

    def function(number: int) -> tuple[int, str, int, int]:
        if number < 4:
            together.wait(60)  # fails unless another one is here too
        return number, threading.current_thread().name, torch.get_num_threads(), abreast()

    results = side_by_side(function, range(5))
    assert [number for number, *_ in results] == list(range(5))
    assert {name for _, name, *_ in results[:4]} == {"lane_0", "lane_1"}
    assert {facts for *_, threads, width in results[:4] for facts in [(threads, width)]} == {(1, 2)}
    assert results[4] == (4, threading.current_thread().name, 2, 1)


def test_threads_to_come_compute_with_as_many_threads_as_before() -> None:
    side_by_side(abs, [1, 2])
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [torch.get_num_threads()] == [2]


def test_what_fails_is_raised_when_the_others_are_done() -> None:
    done = []

    def function(number: int) -> None:
        if number in (0, 1):
            raise ValueError(f"of {number}")
        done.append(number)

    with pytest.raises(ValueError, match="of 0"):
        side_by_side(function, range(4))
    assert sorted(done) == [2, 3]
    assert side_by_side(abs, [-1, -2]) == [1, 2]


@pytest.mark.parametrize(("threads", "count"), [(1, 3), (2, 1), (2, 0)])
def test_one_thread_or_one_item_needs_no_other_thread(threads: int, count: int) -> None:
    here = threading.get_ident()
    with torch_threads(threads):
        assert side_by_side(lambda _: threading.get_ident(), range(count)) == count * [here]


def test_idle_lanes_hold_nothing() -> None:
    class Thing:
        pass

    things = [Thing(), Thing()]
    known = [weakref.ref(thing) for thing in things]
    assert side_by_side(lambda _: None, things) == [None, None]
    del things
    deadline = time.monotonic() + 60
    while any(one() is not None for one in known):
        assert time.monotonic() < deadline
        time.sleep(0.001)


FORKED = """
import os
import torch
from models.lanes import side_by_side

torch.set_num_threads(2)
side_by_side(abs, [-1, -2])
if (process := os.fork()) == 0:
    os._exit(side_by_side(abs, [-1, -2]) != [1, 2])
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


def test_a_forked_process_has_lanes_of_its_own() -> None:
    with subprocess.Popen([sys.executable, "-c", FORKED], start_new_session=True) as process:
        try:
            assert process.wait(60) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


# Two lanes have work until they are interrupted, and some more then; two more items wait.
PROGRAM = """
import os, signal, threading
import torch
from models.lanes import side_by_side

torch.set_num_threads(2)
matrix, interrupted = torch.ones(1000, 1000), threading.Event()

def interrupt(*_):
    interrupted.set()
    raise KeyboardInterrupt

def work(number):
    os.write(1, f"begun {number}\\n".encode())  # whole, beside the other lane's
    while not interrupted.is_set():
        matrix @ matrix
    for _ in range(20):
        matrix @ matrix

signal.signal(signal.SIGINT, interrupt)

side_by_side(work, range(4))
"""


def test_an_interrupt_ends_the_process_when_the_lanes_have_stopped() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        begun = {process.stdout.readline().strip() for _ in range(2)}
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=300)
    assert begun == {"begun 0", "begun 1"}
    assert "KeyboardInterrupt" in errors
    assert process.returncode in (-signal.SIGINT, 130)  # not aborted
    assert rest == ""
