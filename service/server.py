"""Serving the application over HTTP, from the main thread or beside other work."""

from __future__ import annotations

import gc
import ipaddress
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from models.device import DeviceError, resolve_device
from service.app import create_app
from service.connections import MAX_HEAD_BYTES, bounded
from service.inspection import Service
from service.settings import Settings, SettingsError, unknown_variables
from service.telemetry import configure_logging

_log = logging.getLogger("plumbline.server")


def run(settings: Settings) -> None:
    """Serve until SIGINT, or for ``drain_s`` after SIGTERM; what was accepted is answered.

    Raises:
        SettingsError: the device is not there, the address cannot be listened on or is everybody's without keys, or
            the keys cannot be read.
    """
    listener = _listen(settings)
    configure_logging(settings.log_level)
    app = _create_app(settings, listener)
    _log.info(
        "listening",
        extra={"fields": {"url": _url(settings.host, listener), "callers": "keys" if settings.keys else "anonymous"}},
    )
    if unknown := unknown_variables():
        _log.warning("variables that are no settings", extra={"fields": {"names": unknown}})
    with _imports_not_collected(), suppress(KeyboardInterrupt):  # uvicorn raises SIGINT again once it has stopped
        _Server(app).run(sockets=[listener])


@contextmanager
def serving(settings: Settings, *, loaded: bool = True) -> Iterator[str]:
    """Serve on a thread of this process while the block runs; gives the base URL.

    Args:
        loaded: whether to wait until every model was tried; else the URL answers, but may not score yet.

    Raises:
        SettingsError: as ``run``.
    """
    listener = _listen(settings)
    app = _create_app(settings, listener)
    server = _Server(app)
    registry = app.state.service.registry
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True)
    thread.start()
    try:
        while not (server.started and (registry.complete or not loaded)):
            if not thread.is_alive():
                raise RuntimeError("the service did not start; see the log")
            time.sleep(0.01)
        yield _url(settings.host, listener)
    finally:
        server.should_exit = True
        thread.join()


def check_address(settings: Settings) -> None:
    """See that the address can be listened on now, for one who serves only after long work.

    Raises:
        SettingsError: as ``run``.
    """
    _listen(settings).close()


@contextmanager
def _imports_not_collected() -> Iterator[None]:
    """While the block runs, have the collection of garbage leave out what was imported before.

    A full one else walks through all of it every half minute under load, and for 0.3 s no image is scanned or answered.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()  # what ends with the process is collected then, or nanobind says that it leaks


def _create_app(settings: Settings, listener: socket.socket) -> FastAPI:
    try:
        return create_app(settings)
    except SettingsError:
        listener.close()
        raise


class _Server(uvicorn.Server):
    """After the first SIGTERM it answers for a while longer, but is not ready: nobody shall find a closed door."""

    def __init__(self, app: FastAPI) -> None:
        self._service: Service = app.state.service
        self._ends_at = math.inf
        settings = self._service.settings
        config = uvicorn.Config(
            app,
            http=bounded(settings.max_connections),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws="none",
            access_log=False,  # the application writes its own, as JSON
            log_config=None,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_graceful_shutdown=math.ceil(settings.stop_timeout_s),
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; a second SIGTERM, or SIGINT, ends the wait."""
        # An Event would not do: another signal while this one holds its lock would wait for it for ever.
        first, self._service.stopping = not self._service.stopping, True
        if sig == signal.SIGTERM and first:
            self._ends_at = time.monotonic() + self._service.settings.drain_s
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ask, ten times a second, whether to stop."""
        self.should_exit = self.should_exit or time.monotonic() >= self._ends_at
        return await super().on_tick(counter)


def _listen(settings: Settings) -> socket.socket:
    try:
        resolve_device(settings.device)
    except DeviceError as error:
        raise SettingsError(f"PLUMBLINE_DEVICE (--device): {error}") from error
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host!r} port {settings.port} ({error.strerror}); "
            "set PLUMBLINE_HOST (--host) and PLUMBLINE_PORT (--port) to an address that is free"
        ) from error
    # asyncio sets it for sockets that say they are TCP's; these do not. Without, the body of an answer on a connection
    # that is kept waits 40 ms for the receiver to acknowledge its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reachable = not ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    if reachable and settings.keys is None and not settings.allow_anonymous:
        listener.close()
        raise SettingsError(
            f"{settings.host} can be reached from other machines, and no caller would need a key; make one: "
            "plumbline keys create NAME --scope score --keys keys.json, then serve with PLUMBLINE_KEYS=keys.json "
            "(--keys keys.json), or let anybody in: PLUMBLINE_ALLOW_ANONYMOUS=true (--allow-anonymous)"
        )
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"
