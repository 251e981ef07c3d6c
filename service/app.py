"""The application: its parts, its routes, and what happens when it starts and stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib import metadata

import torch
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from models.device import resolve_device, set_threads
from models.store import ModelStore
from service.access import Access
from service.api import (
    categories,
    extension,
    health,
    inspections,
    lookout,
    oip,
    oip_repository,
    operation,
    scoring,
    versions,
)
from service.api import drift as drift_api
from service.backlog import Backlog
from service.bodies import BodyLimit
from service.browsers import BrowserGuard
from service.documentation import create_documented_app
from service.drift import Drift
from service.errors import install_error_handlers
from service.heads import HeadAsGet
from service.inspection import Service
from service.keyring import Keyring
from service.limits import Rate
from service.line import Line
from service.middleware import PROBES, RequestMiddleware
from service.openapi import extend_openapi
from service.publishing.sink import open_publishing
from service.records.sink import open_records
from service.registry import Registry
from service.sealing import Seal, find_seal
from service.settings import Settings
from service.shadow import Shadows
from service.telemetry import Telemetry
from service.worker import Worker

_CUDA_BATCH_SIZE = 8


def create_app(settings: Settings) -> FastAPI:
    """Build the application; it loads models when it starts, and answers while it does.

    Raises:
        SettingsError: the keys cannot be read, or inspections not be recorded or told as they are to be.
    """
    keyring = None if settings.keys is None else Keyring(settings.keys, _seal(settings))
    telemetry = Telemetry()
    line = Line(settings.batch_size or _batch_size(settings), settings.batch_wait_ms / 1000)
    worker = Worker(
        line, hang_s=settings.hang_timeout_s, job_hang_s=settings.job_hang_timeout_s, on_batch=telemetry.batch
    )
    publishing = open_publishing(settings, telemetry)
    records = open_records(settings, telemetry)
    registry = Registry(ModelStore(settings.models), worker, telemetry, settings)
    drift = Drift(registry, settings, telemetry)
    shadows = Shadows(registry, worker, telemetry, records)
    service = Service(
        settings=settings,
        telemetry=telemetry,
        worker=worker,
        registry=registry,
        backlog=Backlog(settings.queue_bytes),
        images=ThreadPoolExecutor(settings.image_threads, thread_name_prefix="images"),
        sinks=tuple(sink for sink in (records, drift, shadows, publishing) if sink is not None),
        records=records,
        drift=drift,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.registry.discover()
        worker.start()
        tasks = [asyncio.create_task(_start(service)), asyncio.create_task(telemetry.watch_event_loop())]
        async with AsyncExitStack() as stack:
            if keyring is not None:
                await stack.enter_async_context(keyring.followed())
            for sink in service.sinks:
                await stack.enter_async_context(sink)
            yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(worker.stop)
        service.images.shutdown(wait=False, cancel_futures=True)

    app = create_documented_app(
        title="Plumbline",
        summary="Visual inspection learned from images of good parts only",
        version=metadata.version("plumbline"),
        lifespan=lifespan,
        redirect_slashes=False,
        # Metrics are Prometheus's; a span for the handler of a request would say the same as that of the request.
        telemetry={
            "auto_configure": True,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": lambda scope: scope.get("path") in PROBES,
        },
    )
    app.state.service = service
    rate = None if settings.rate_limit is None else Rate(per_second=settings.rate_limit, burst=settings.rate_burst)
    app.state.access = Access(keyring, rate)
    _add_middleware(app, settings, telemetry)
    install_error_handlers(app, {oip.PREFIX: oip.ERRORS, lookout.PREFIX: lookout.ERRORS})
    extend_openapi(app)
    for router in (
        scoring.router,
        categories.router,
        versions.router,
        extension.router,
        operation.router,
        inspections.router,
        drift_api.router,
        health.router,
        oip.router,
        oip_repository.router,
        lookout.router,
    ):
        app.include_router(router)
    return app


def _batch_size(settings: Settings) -> int:
    """What a GPU takes in one pass, or as many as a CPU scans side by side: none waits for its turn in a batch."""
    if resolve_device(settings.device).type == "cuda":
        return _CUDA_BATCH_SIZE
    return settings.threads or torch.get_num_threads()


def _seal(settings: Settings) -> Seal | None:
    key = None if settings.secret_key is None else settings.secret_key.get_secret_value()
    return find_seal(key, settings.secret_key_file)


def _add_middleware(app: FastAPI, settings: Settings, telemetry: Telemetry) -> None:
    """The last that is added is the first that a request meets."""
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, timeout_s=settings.request_timeout_s)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],  # the numbers of a picture are in its headers
        )
    any_host = settings.keys is not None and not settings.allowed_hosts
    hosts = None if any_host else {"localhost", settings.host.lower(), *settings.allowed_hosts}
    app.add_middleware(BrowserGuard, hosts=hosts, origins=settings.cors_origins)
    app.add_middleware(RequestMiddleware, telemetry=telemetry)


async def _start(service: Service) -> None:
    if (threads := service.settings.threads) is not None:
        # On the worker: FAISS and torch keep a count per calling thread.
        await service.worker.run(lambda: set_threads(threads))
    await service.registry.run()
