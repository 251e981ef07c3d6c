"""What happens around every request: an id, a log line, a count, and an answer when nothing else gave one."""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import CLIENT_CLOSED_REQUEST, INTERNAL_ERROR, problem_response
from service.telemetry import Telemetry

ID_HEADER = "X-Plumbline-Id"

# Asked every few seconds by machines; logged at debug level, so that they do not bury what people ask.
_PROBES = ("/healthz", "/readyz", "/metrics")
_LONGEST_PATH = 200

# Labels of a metric must be few, and a client may invent methods.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_log = logging.getLogger("plumbline.requests")


class RequestMiddleware:
    """Gives each request an id, and records how it ended.

    Handlers find the id in ``request.state.id``, the time of arrival (``time.monotonic``) in ``request.state.begun``,
    and add to the log line through ``request.state.log``.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request = Request(scope, receive)
        request.state.id = uuid4()
        request.state.begun = started
        request.state.log = {}
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[ID_HEADER] = str(request.state.id)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _log.exception("a request failed", extra={"fields": {"id": str(request.state.id)}})
            if status is None:
                detail = "the service could not complete the request; its log has the reason under the instance's id"
                await problem_response(request, INTERNAL_ERROR, detail)(scope, receive, send_with_id)
        finally:
            self._record(request, status, time.monotonic() - started)

    def _record(self, request: Request, status: int | None, seconds: float) -> None:
        route = getattr(request.scope.get("route"), "path", "unmatched")
        method = request.method if request.method in _METHODS else "other"
        self._telemetry.requests.labels(method, route, status or "none").inc()
        if (
            reason := "client-left" if status == CLIENT_CLOSED_REQUEST else request.state.log.get("problem")
        ) is not None:
            self._telemetry.rejects.labels(reason).inc()
        fields: dict[str, Any] = {
            "id": str(request.state.id),
            "method": request.method,
            "path": request.url.path[:_LONGEST_PATH],
            "status": status,
            "ms": round(1000 * seconds, 3),
            **request.state.log,
        }
        level = logging.DEBUG if request.url.path in _PROBES else logging.INFO
        _log.log(level, "request", extra={"fields": fields})
