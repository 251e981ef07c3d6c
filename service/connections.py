"""Connections that ask for nothing, or ask too slowly, must not keep others out."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES = 32 * 1024
"""Most bytes of a request's line and headers that are kept while the rest has not arrived."""

_HEAD_S = 10
"""Longest time for a request's line and headers to arrive, once the connection is there or the first byte is."""

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with a limit on connections and on the time that a request's head may take.

    uvicorn itself has neither for a connection that never sends a whole head, and its limit on concurrency lets such
    connections close the service to all others.
    """

    def __init__(self, *arguments: object, max_connections: int, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._max_connections = max_connections
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            transport.write(_FULL)
            transport.close()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_head()

    def _watch_head(self) -> None:
        """Between requests, the time for the next one's head runs from its first byte, or from the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_S, self._head_late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def bounded(max_connections: int) -> type[asyncio.Protocol]:
    """The protocol for ``uvicorn.Config``, which calls it with what each connection needs."""
    return cast("type[asyncio.Protocol]", partial(BoundedProtocol, max_connections=max_connections))
