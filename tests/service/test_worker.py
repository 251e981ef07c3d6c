from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.worker import QueueFull, Worker, WorkerUnavailable


@asynccontextmanager
async def running(queue_size: int = 4) -> AsyncIterator[Worker]:
    worker = Worker(queue_size)
    worker.start()
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.stop)


def test_jobs_run_in_order_on_one_thread_of_its_own() -> None:
    async def main() -> None:
        async with running(queue_size=100) as worker:
            order: list[int] = []

            def job(number: int) -> int:
                order.append(number)
                return threading.get_ident()

            jobs = [worker.run(lambda number=number: job(number), time_limit_s=9) for number in range(50)]  # type: ignore[misc]
            threads = {done.value for done in await asyncio.gather(*jobs)}
            assert order == list(range(50))
            assert len(threads) == 1
            assert threading.get_ident() not in threads

    asyncio.run(main())


def test_error_is_the_jobs_own() -> None:
    async def main() -> None:
        async with running() as worker:
            with pytest.raises(ZeroDivisionError):
                await worker.run(lambda: 1 / 0, time_limit_s=9)
            assert worker.failure() is None
            assert (await worker.run(lambda: 7, time_limit_s=9)).value == 7

    asyncio.run(main())


def test_own_work_is_queued_where_others_are_refused() -> None:
    async def main() -> None:
        entered, release = threading.Event(), threading.Event()

        def hold() -> None:
            entered.set()
            release.wait(60)

        async with running(queue_size=1) as worker:
            held = asyncio.create_task(worker.run(hold, time_limit_s=60))
            while not entered.is_set():
                await asyncio.sleep(0)
            waiting = asyncio.create_task(worker.run(lambda: 1, time_limit_s=60))
            own = asyncio.create_task(worker.run(lambda: 2, time_limit_s=None))
            while worker.depth < 2:
                await asyncio.sleep(0)
            with pytest.raises(QueueFull) as refused:
                await worker.run(lambda: 3, time_limit_s=60)
            assert refused.value.retry_after_s >= 1
            release.set()
            assert (await waiting).value == 1
            assert (await own).value == 2
            await held

    asyncio.run(main())


def test_cancelled_job_does_not_run() -> None:
    async def main() -> None:
        release, ran = threading.Event(), threading.Event()
        async with running() as worker:
            held = asyncio.create_task(worker.run(release.wait, time_limit_s=60))
            cancelled = asyncio.create_task(worker.run(ran.set, time_limit_s=60))
            while worker.depth == 0:
                await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            release.set()
            await held
            await worker.run(lambda: None, time_limit_s=60)
            assert not ran.is_set()

    asyncio.run(main())


def test_stopping_answers_everyone() -> None:
    async def main() -> None:
        entered, release = threading.Event(), threading.Event()

        def hold() -> str:
            entered.set()
            release.wait(60)
            return "finished"

        worker = Worker(4)
        worker.start()
        held = asyncio.create_task(worker.run(hold, time_limit_s=60))
        await asyncio.to_thread(entered.wait, 60)
        waiting = asyncio.create_task(worker.run(lambda: 1, time_limit_s=60))
        while worker.depth == 0:
            await asyncio.sleep(0)
        stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
        with pytest.raises(WorkerUnavailable, match="stopping"):
            await waiting
        release.set()
        await stopping
        assert (await held).value == "finished"
        with pytest.raises(WorkerUnavailable):
            await worker.run(lambda: 1, time_limit_s=60)
        with pytest.raises(WorkerUnavailable):
            await worker.run(lambda: 1, time_limit_s=None)

    asyncio.run(main())


def test_never_started() -> None:
    with pytest.raises(WorkerUnavailable, match="started"):
        Worker(1).check()
