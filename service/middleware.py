"""What happens around every request: an id, a log line, a count, and an answer when nothing else gave one."""

from __future__ import annotations

import logging
import re
import time
from typing import Any
from uuid import uuid4

from opentelemetry import trace
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import CLIENT_CLOSED_REQUEST, INTERNAL_ERROR, problem_response
from service.telemetry import Telemetry

ID_HEADER = "X-Plumbline-Id"
CLIENT_ID_HEADER = "X-Request-Id"

# Of every answer that does not say otherwise.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# Asked every few seconds by machines; logged at debug level, so that they do not bury what people ask.
PROBES = ("/healthz", "/readyz", "/metrics")
_LONGEST_PATH = 200

# Labels of a metric must be few, and a client may invent methods.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# A client's own id of a request is for its log and ours; one that is not such a text is left out.
_PRINTABLE = re.compile(r"[\x20-\x7e]{1,128}")

_log = logging.getLogger("plumbline.requests")
_audit = logging.getLogger("plumbline.audit")


class RequestMiddleware:
    """Gives each request an id, records how it ended, and gives each answer the headers that keep browsers careful.

    Handlers find the id in ``request.state.id``, the time of arrival (``time.monotonic``) in ``request.state.begun``,
    and add to the log line through ``request.state.log``; one that changes something sets ``request.state.audited``.
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
        if _PRINTABLE.fullmatch(sent := request.headers.get(CLIENT_ID_HEADER, "")):
            request.state.log["request_id"] = sent
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[ID_HEADER] = str(request.state.id)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                _describe(request)  # the span of the request ends with its answer
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
        path = request.scope["path"]  # that of request.url is without control characters
        fields: dict[str, Any] = {
            "id": str(request.state.id),
            "method": request.method,
            "path": path[:_LONGEST_PATH],
            "address": None if request.client is None else request.client.host,
            "status": status,
            "ms": round(1000 * seconds, 3),
            **request.state.log,
        }
        if getattr(request.state, "audited", False):
            _audit.info("change", extra={"fields": fields})
        level = logging.DEBUG if path in PROBES else logging.INFO
        _log.log(level, "request", extra={"fields": fields})


def _describe(request: Request) -> None:
    """Say in the request's span, where it is traced, what its log line says."""
    facts = {"id": request.state.id, **request.state.log}
    trace.get_current_span().set_attributes(
        {f"plumbline.{name}": value if isinstance(value, int | float) else str(value) for name, value in facts.items()}
    )
