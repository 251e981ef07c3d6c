"""Images side by side: each on a thread of its own that computes with one thread of torch.

An operation that is split over all threads ends when the slowest of them does, and whatever else runs on one of their
cores holds up all of them, some hundred times an image. Images side by side wait for each other only when all are done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import cache
from queue import SimpleQueue
from typing import Any, TypeVar

import faiss
import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_own = threading.local()


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``function`` of every item, in their order.

    As many at once as torch has threads for the caller; those that are left over one after the other, with all of them.
    For one caller at a time. When it returns or raises, nothing runs any more.

    Args:
        function: works on the CPU, and may run on several threads at once.

    Raises:
        whatever ``function`` raises of the first item for which it does; what was left over has not been begun.
    """
    count = torch.get_num_threads()
    together = len(items) // count * count if count > 1 else 0
    results = [_lanes(count).run(function, item) for item in items[:together]]
    try:
        wait(results)
    except BaseException:  # interrupted: a process that ends while a lane computes is aborted
        for result in results:
            result.cancel()
        wait(results)
        raise
    return [result.result() for result in results] + [function(item) for item in items[together:]]


def abreast() -> int:
    """How many items are worked at while this thread works at one."""
    return getattr(_own, "abreast", 1)


@cache
def _lanes(count: int) -> _Lanes:
    return _Lanes(count)


os.register_at_fork(after_in_child=_lanes.cache_clear)  # a child has none of its parent's threads


class _Lanes:
    def __init__(self, count: int) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[Any], Any], Any]] = SimpleQueue()
        self._begun = threading.Barrier(count + 1)
        for number in range(count):
            # A daemon: what hangs does not keep the process from ending.
            threading.Thread(target=self._work, args=(count,), name=f"lane_{number}", daemon=True).start()
        self._begun.wait()
        torch.set_num_threads(count)  # for threads to come; what the lanes have set was for them too

    def run(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        future: Future[Result] = Future()
        self._queue.put((future, function, item))
        return future

    def _work(self, count: int) -> None:
        _own.abreast = count
        faiss.omp_set_num_threads(1)
        torch.get_num_threads()  # first: a thread takes over the number for threads to come when it is first asked
        torch.set_num_threads(1)
        self._begun.wait()
        while True:
            future, function, item = self._queue.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(item))
                except BaseException as error:  # it is for who waits
                    future.set_exception(error)
            del future, function, item  # nothing is held while nothing is done
