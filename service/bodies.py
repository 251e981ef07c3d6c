"""Limits on the bodies that FastAPI itself reads, which has none: JSON of a few kilobytes."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import UPLOAD_TIMEOUT, UPLOAD_TOO_LARGE, ProblemError

MAX_BYTES = 2**20


class BodyLimit:
    """Bounds the bytes of a body and the time it may take, on routes that declare a model of it.

    Routes of images read their body themselves, under limits of their own.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Request(scope).headers.get("content-length", "")
        received, complete, deadline = 0, False, asyncio.get_running_loop().time() + self._timeout_s

        async def receive_some() -> Message:
            nonlocal received, complete
            if complete or getattr(scope.get("route"), "body_field", None) is None:
                return await receive()
            if declared.isdecimal() and int(declared) > MAX_BYTES:
                raise _too_large()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                detail = f"the body did not arrive within {self._timeout_s:g} s"
                raise ProblemError(UPLOAD_TIMEOUT, detail, {"Connection": "close"}) from error
            received += len(message.get("body", b""))
            if received > MAX_BYTES:
                raise _too_large()
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_some, send)


def _too_large() -> ProblemError:
    return ProblemError(UPLOAD_TOO_LARGE, f"the request body is larger than the {MAX_BYTES} bytes that are accepted")
