from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.detector import Detector
from models.scan import Scan
from service.line import DeadlineUnmet, Image, Line, Released
from service.pace import Pace
from service.worker import DeviceOutOfMemory, Worker, WorkerUnavailable, _failure
from tests.service.support import make_detector, part, wait_until
from tests.threads import torch_threads


@pytest.fixture(scope="module")
def own_detector() -> Detector:
    return make_detector()


def make_worker(
    batches: list[tuple[int, Released]] | None = None,
    *,
    batch_size: int = 8,
    hang_s: float = 60,
    job_hang_s: float = 60,
) -> Worker:
    seen = [] if batches is None else batches
    return Worker(
        Line(batch_size, 0),
        hang_s=hang_s,
        job_hang_s=job_hang_s,
        on_batch=lambda size, reason: seen.append((size, reason)),
    )


@asynccontextmanager
async def running(*arguments: Any, **options: Any) -> AsyncIterator[Worker]:
    worker = make_worker(*arguments, **options)
    worker.start()
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.stop)


class Gate:
    """A job that holds the worker until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.opened.wait(60)
        return "finished"


@asynccontextmanager
async def held(worker: Worker) -> AsyncIterator[Gate]:
    gate = Gate()
    job = asyncio.create_task(worker.run(gate))
    await asyncio.to_thread(gate.entered.wait, 60)
    try:
        yield gate
    finally:
        gate.opened.set()
        assert (await job).value == "finished"


def soon() -> float:
    return time.monotonic() + 600


def placed(detector: Detector, count: int) -> list[NDArray[np.uint8]]:
    return [detector.place(part(seed))[0] for seed in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


def test_jobs_run_in_order_on_one_thread_of_its_own() -> None:
    async def main() -> None:
        async with running() as worker:
            order: list[int] = []

            def job(number: int) -> int:
                order.append(number)
                return threading.get_ident()

            jobs = [worker.run(lambda number=number: job(number)) for number in range(50)]  # type: ignore[misc]
            threads = {done.value for done in await asyncio.gather(*jobs)}
            assert order == list(range(50))
            assert len(threads) == 1
            assert threading.get_ident() not in threads

    asyncio.run(main())


def test_images_that_wait_are_one_batch_and_each_has_its_own_maps(own_detector: Detector) -> None:
    async def main() -> None:
        batches: list[tuple[int, Released]] = []
        images = placed(own_detector, 5)
        async with running(batches, batch_size=3) as worker:
            async with held(worker) as gate:
                scans = [asyncio.create_task(worker.scan(own_detector, image, soon())) for image in images]
                await until(lambda: worker.depth == 5)
                gate.opened.set()
                results = await asyncio.gather(*scans)
            assert batches == [(3, Released.FULL), (2, Released.IDLE)]
            for image, result in zip(images, results, strict=True):
                score_map, anomaly_map = (maps[0] for maps in own_detector.scan.maps(image[None]))
                np.testing.assert_allclose(result.value[0], score_map, atol=1e-5)
                np.testing.assert_allclose(result.value[1], anomaly_map, atol=1e-5)
            assert worker.pace(own_detector).typical_s > 0
            assert results[-1].waited_s > 0

    with torch_threads(1):
        asyncio.run(main())


def test_a_detector_that_is_idle_is_not_kept(own_detector: Detector) -> None:
    async def main() -> None:
        async with running() as worker:
            detector = make_detector()
            await worker.scan(detector, placed(detector, 1)[0], soon())
            await worker.run(lambda: None)
            assert len(worker._paces) == 1
            del detector
            await until(lambda: len(worker._paces) == 0)

    asyncio.run(main())


def test_error_is_the_jobs_own() -> None:
    async def main() -> None:
        async with running() as worker:
            for _ in range(5):
                with pytest.raises(ZeroDivisionError):
                    await worker.run(lambda: 1 / 0)
            assert worker.failure() is None
            assert (await worker.run(lambda: 7)).value == 7

    asyncio.run(main())


def test_cancelled_work_does_not_run(own_detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        ran = threading.Event()
        monkeypatch.setattr(Scan, "look", lambda *_: ran.set())
        async with running() as worker:
            async with held(worker):
                job = asyncio.create_task(worker.run(ran.set))
                scan = asyncio.create_task(worker.scan(own_detector, placed(own_detector, 1)[0], soon()))
                await until(lambda: worker.depth == 1)
                for task in (job, scan):
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                assert worker.depth == 0
            await worker.run(lambda: None)
            assert not ran.is_set()

    asyncio.run(main())


def test_an_image_that_is_too_late_is_not_scanned(own_detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(Scan, "look", lambda *_: pytest.fail("scanned"))
        async with running() as worker:
            with pytest.raises(DeadlineUnmet):
                await worker.scan(own_detector, placed(own_detector, 1)[0], time.monotonic() - 1)
            assert worker.failure() is None

    asyncio.run(main())


def test_stopping_answers_everyone(own_detector: Detector) -> None:
    async def main() -> None:
        worker = make_worker()
        worker.start()
        async with held(worker) as gate:
            waiting = asyncio.create_task(worker.run(lambda: 1))
            image = asyncio.create_task(worker.scan(own_detector, placed(own_detector, 1)[0], soon()))
            await until(lambda: worker.depth == 1)
            stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
            for task in (waiting, image):
                with pytest.raises(WorkerUnavailable, match="stopping"):
                    await task
            gate.opened.set()
            await stopping
        with pytest.raises(WorkerUnavailable):
            await worker.run(lambda: 1)

    asyncio.run(main())


def queued(detector: Detector, begun_s_ago: float | None = None) -> Image:
    """An image whose scan usually takes 10 s."""
    pace = Pace()
    pace.note(10)
    image = Image(pace, detector, np.zeros((1, 1, 3), np.uint8), soon())
    image.begun_at = None if begun_s_ago is None else time.monotonic() - begun_s_ago
    return image


def test_how_long_what_runs_and_what_waits_should_take(own_detector: Detector) -> None:
    worker = make_worker()
    for begun_s_ago, rest_s in ((None, 10), (4, 6), (40, 0)):  # what is late is not owed to those who wait
        worker._running = [queued(own_detector, begun_s_ago)]
        assert worker.wait_s() == pytest.approx(1.2 * rest_s, abs=0.5)
    worker._line.add(queued(own_detector))
    assert worker.wait_s() == pytest.approx(1.2 * 10, abs=0.5)


@pytest.mark.parametrize(("begun_s_ago", "hangs"), [(90, False), (130, True)])
def test_two_images_in_one_pass_may_take_twice_as_long(
    own_detector: Detector, monkeypatch: pytest.MonkeyPatch, begun_s_ago: float, hangs: bool
) -> None:
    worker = make_worker(hang_s=60)
    worker._ended, worker._thread = None, threading.current_thread()
    worker._running = [queued(own_detector, begun_s_ago) for _ in range(2)]
    assert "the worker hangs" in (worker.unavailable() or "")  # each by itself
    in_one_pass(monkeypatch)
    assert (worker.unavailable() is not None) == hangs


def test_the_first_reason_of_an_end_is_told() -> None:
    worker = make_worker()
    worker._ended = None
    worker._end("the worker died of something")
    worker._end("the service is stopping")
    assert worker.unavailable() == "the worker died of something"


def test_a_batch_has_failed_where_no_image_of_it_could_be_scanned() -> None:
    assert _failure(["a", None]) is _failure([None, "a"]) is None
    assert _failure(["a", "b"]) == "b"


def test_never_started() -> None:
    assert "started" in (make_worker().unavailable() or "")


class Device:
    """Stands in for ``Scan.look``: what it raises depends on what it is given."""

    def __init__(self, fault: Callable[[NDArray[np.uint8]], BaseException | None]) -> None:
        self.look = Scan.look
        self.fault = fault
        self.sizes: list[int] = []

    def __call__(self, scan: Scan, images: NDArray[np.uint8]) -> Any:
        self.sizes.append(len(images))
        if (error := self.fault(images)) is not None:
            raise error
        return self.look(scan, images)


async def scan_together(worker: Worker, detector: Detector, images: list[NDArray[np.uint8]]) -> list[Any]:
    async with held(worker) as gate:
        scans = [asyncio.create_task(worker.scan(detector, image, soon())) for image in images]
        await until(lambda: worker.depth == len(images))
        gate.opened.set()
        return await asyncio.gather(*scans, return_exceptions=True)


def scanned(worker: Worker) -> int:
    """Images that have been taken and are not done."""
    return sum(isinstance(work, Image) for work in list(worker._running))


async def beside_one_that_waits(
    worker: Worker, detector: Detector, images: list[NDArray[np.uint8]]
) -> asyncio.Task[list[Any]]:
    """Two images of which the first is held up: the lane of the other is free when this returns."""
    scans = asyncio.create_task(scan_together(worker, detector, images))
    await until(lambda: scanned(worker) == 1)
    return scans


def patched(monkeypatch: pytest.MonkeyPatch, fault: Callable[[NDArray[np.uint8]], BaseException | None]) -> Device:
    device = Device(fault)
    monkeypatch.setattr(Scan, "look", lambda scan, images: device(scan, images))
    return device


def in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the worker scan a batch as on a GPU."""
    monkeypatch.setattr(Scan, "abreast", False)


def test_a_batch_that_does_not_fit_is_scanned_image_by_image(
    own_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_pass(monkeypatch)
    begun: list[int] = []

    async def main() -> None:
        async with running() as worker:

            def fault(images: NDArray[np.uint8]) -> BaseException | None:
                begun.append(len(worker._begun()))
                return torch.OutOfMemoryError("CUDA out of memory.") if len(images) > 1 else None

            device = patched(monkeypatch, fault)
            results = await scan_together(worker, own_detector, placed(own_detector, 3))
            assert device.sizes == [3, 1, 1, 1]
            assert begun == [3, 1, 1, 1]  # each counts as running from when it is scanned by itself
            assert all(result.value[0].shape == (57, 57) for result in results)
            assert worker.failure() is None

    asyncio.run(main())


@pytest.mark.parametrize("how", ["in one pass", "one by one", "side by side"])
def test_an_image_that_fails_fails_alone(own_detector: Detector, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "in one pass":
        in_one_pass(monkeypatch)
    images = placed(own_detector, 3)
    bad = images[1]

    def fault(batch: NDArray[np.uint8]) -> BaseException | None:
        return torch.OutOfMemoryError("CUDA out of memory.") if any((one == bad).all() for one in batch) else None

    patched(monkeypatch, fault)

    async def main() -> None:
        async with running() as worker:
            first, second, third = await scan_together(worker, own_detector, images)
            assert isinstance(second, DeviceOutOfMemory)
            assert first.value[0].shape == third.value[0].shape
            assert worker.failure() is None

    with torch_threads(3 if how == "side by side" else 1):
        asyncio.run(main())


def held_up(monkeypatch: pytest.MonkeyPatch, image: NDArray[np.uint8]) -> tuple[threading.Event, set[str]]:
    """Have the scan of one image wait for an event; gives it, and the names of the threads that scan."""
    opened, threads, look = threading.Event(), set[str](), Scan.look

    def scan(scan: Scan, pixels: NDArray[np.uint8]) -> Any:
        threads.add(threading.current_thread().name)
        if (pixels == image).all():
            assert opened.wait(60)
        return look(scan, pixels)

    monkeypatch.setattr(Scan, "look", scan)
    return opened, threads


def test_images_side_by_side_are_each_answered_when_done(
    own_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = placed(own_detector, 2)
    slow, threads = held_up(monkeypatch, images[0])

    async def main() -> None:
        async with running() as worker:
            async with held(worker) as gate:
                first, second = (asyncio.create_task(worker.scan(own_detector, one, soon())) for one in images)
                await until(lambda: worker.depth == 2)
                gate.opened.set()
                done, _ = await asyncio.wait([first, second], timeout=60, return_when=asyncio.FIRST_COMPLETED)
                assert done == {second}
                slow.set()
                results = [await first, await second]
            assert threads == {"lane_0", "lane_1"}
            assert worker.pace(own_detector).fastest_s == min(result.ran_s for result in results) / 2

    with torch_threads(2):
        asyncio.run(main())


def test_an_image_begins_where_a_lane_is_free_beside_others(
    own_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = placed(own_detector, 4)
    slow, threads = held_up(monkeypatch, images[0])
    batches: list[tuple[int, Released]] = []

    async def main() -> None:
        async with running(batches, batch_size=2) as worker:
            scans = await beside_one_that_waits(worker, own_detector, images[:2])
            for image in images[2:]:  # the second one's lane waits for them
                await asyncio.wait_for(worker.scan(own_detector, image, soon()), 60)
            assert not scans.done()
            slow.set()
            await scans
        assert batches == [(2, Released.FULL), (1, Released.JOINED), (1, Released.JOINED)]
        assert threads == {"lane_0", "lane_1"}

    with torch_threads(2):
        asyncio.run(main())


@pytest.mark.parametrize("why", ["a job is first", "the detector scans one by one", "it has been long"])
def test_nothing_begins_beside_others_that_is_not_to(
    own_detector: Detector, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    images = placed(own_detector, 3)
    slow, _ = held_up(monkeypatch, images[0])
    order: list[str] = []

    async def main() -> None:
        async with running() as worker:
            scans = await beside_one_that_waits(worker, own_detector, images[:2])
            if why == "a job is first":
                job = asyncio.create_task(worker.run(lambda: order.append("job")))
                await asyncio.sleep(0)
            if why == "the detector scans one by one":
                monkeypatch.setattr(Scan, "abreast", False)
            late = asyncio.create_task(worker.scan(own_detector, images[2], soon()))
            late.add_done_callback(lambda _: order.append("image"))
            await until(lambda: worker.depth == 1)
            await asyncio.sleep(0.2)
            assert worker.depth == 1
            assert order == []
            slow.set()
            await scans
            await late
            if why == "a job is first":
                await job
                assert order == ["job", "image"]

    with torch_threads(2):
        if why == "it has been long":
            monkeypatch.setattr("service.worker._LANES_S", -1)
        asyncio.run(main())


def test_an_image_that_hangs_is_noticed_while_others_go_on_beside_it(
    own_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = placed(own_detector, 3)
    stuck, _ = held_up(monkeypatch, images[0])
    slow, _ = held_up(monkeypatch, images[2])

    async def main() -> None:
        async with running(hang_s=2) as worker:
            scans = await beside_one_that_waits(worker, own_detector, images[:2])
            while worker.unavailable() is None:
                await worker.scan(own_detector, images[1], soon())
            late = asyncio.create_task(worker.scan(own_detector, images[2], soon()))
            await until(lambda: scanned(worker) == 2)
            assert "2 s are allowed" in (worker.unavailable() or "")
            for event in (stuck, slow):
                event.set()
            await asyncio.gather(scans, late)
            await until(lambda: worker.unavailable() is None)

    with torch_threads(2):
        monkeypatch.setattr("service.worker._LANES_S", 600)
        asyncio.run(main())


def test_a_device_that_keeps_failing_is_not_healthy_until_it_works(
    own_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()
    broken.set()
    patched(
        monkeypatch, lambda _: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED") if broken.is_set() else None
    )

    async def main() -> None:
        [image] = placed(own_detector, 1)
        async with running() as worker:
            for count in range(3):
                assert worker.failure() is None, count
                with pytest.raises(RuntimeError, match="CUDNN"):
                    await worker.scan(own_detector, image, soon())
            await until(lambda: worker.failure() is not None)
            assert "last 3 batches failed" in (worker.failure() or "")
            assert worker.unavailable() is None
            broken.clear()
            await worker.scan(own_detector, image, soon())
            await until(lambda: worker.failure() is None)

    asyncio.run(main())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fatal_error_ends_the_worker_at_once(
    own_detector: Detector, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    images = placed(own_detector, 2)
    at_last = threading.Event()

    def fault(batch: NDArray[np.uint8]) -> BaseException | None:
        if threads > 1 and (batch == images[1]).all():
            return None
        assert at_last.wait(60)
        return RuntimeError("CUDA error: an illegal memory access was encountered")

    patched(monkeypatch, fault)

    async def main() -> None:
        async with running() as worker:
            scans = asyncio.create_task(scan_together(worker, own_detector, images))
            await until(lambda: scanned(worker) == 3 - threads)  # the second one's lane waits for more
            at_last.set()
            first, second = await scans
            assert isinstance(first, WorkerUnavailable)
            assert isinstance(second, WorkerUnavailable) == (threads == 1)
            assert "illegal memory access" in (worker.failure() or "")
            with pytest.raises(WorkerUnavailable, match="illegal"):
                await worker.run(lambda: 1)

    with torch_threads(threads):
        asyncio.run(main())


def test_a_worker_that_dies_while_it_chooses_work_answers_who_waits(own_detector: Detector) -> None:
    def fail(size: int, reason: Released) -> None:
        raise RuntimeError("nobody foresaw this")

    async def main() -> None:
        worker = Worker(Line(1, 0), hang_s=60, job_hang_s=60, on_batch=fail)
        worker.start()
        gate = Gate()
        job = asyncio.create_task(worker.run(gate))
        await until(gate.entered.is_set)
        scans = [asyncio.create_task(worker.scan(own_detector, image, soon())) for image in placed(own_detector, 2)]
        await until(lambda: worker.depth == 2)
        gate.opened.set()
        assert (await job).value == "finished"
        for result in await asyncio.gather(*scans, return_exceptions=True):
            assert isinstance(result, WorkerUnavailable)
        assert "nobody foresaw this" in (worker.failure() or "")

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_batch_and_a_job_may_take_as_long_as_is_allowed_for_each(
    own_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(Scan, "look", lambda *_: int(gate()))

    async def main() -> None:
        async with running(hang_s=0.01) as worker, held(worker):
            await asyncio.sleep(0.1)
            assert worker.unavailable() is None
        async with running(job_hang_s=0.01) as worker:
            async with held(worker):
                await until(lambda: "a job has been running" in (worker.unavailable() or ""))
            await until(lambda: worker.unavailable() is None)
        async with running(hang_s=0.01) as worker:
            scan = asyncio.create_task(worker.scan(own_detector, placed(own_detector, 1)[0], soon()))
            await until(lambda: "a batch has been running" in (worker.unavailable() or ""))
            gate.opened.set()
            with pytest.raises(ValueError, match="finished"):  # the gate's answer is no number
                await scan
            await until(lambda: worker.unavailable() is None)

    asyncio.run(main())


def test_an_explanation_counts_in_what_there_is_to_do() -> None:
    async def main() -> None:
        pace = Pace()
        pace.note(600)
        async with running() as worker:
            assert worker.wait_s() == 0
            async with held(worker):
                waiting = asyncio.create_task(worker.run(lambda: None, pace))
                await until(lambda: worker.wait_s() > 600)
            await waiting
            assert worker.wait_s() == 0

    asyncio.run(main())
