"""The image of a request: the body itself, or the field ``image`` of a multipart form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.requests import Request

from models.images import ACCEPTED_FORMATS
from service.admission import queue_full
from service.backlog import TooMuchHeld
from service.errors import (
    INVALID_REQUEST,
    MALFORMED_MULTIPART,
    UNSUPPORTED_MEDIA_TYPE,
    UPLOAD_TIMEOUT,
    UPLOAD_TOO_LARGE,
    ProblemError,
    media_type_of,
    not_accepted,
    quote,
)
from service.inspection import service_of

FIELD = "image"
_MULTIPART = "multipart/form-data"
_BYTES = "application/octet-stream"

REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"One image: {', '.join(ACCEPTED_FORMATS)}.",
        "content": {
            _MULTIPART: {
                "schema": {
                    "type": "object",
                    "properties": {FIELD: {"type": "string", "format": "binary"}},
                    "required": [FIELD],
                    "additionalProperties": False,
                }
            },
            _BYTES: {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""The OpenAPI description of the body that ``read_upload`` reads."""


async def read_upload(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """Read the encoded image of a request into memory.

    Args:
        max_bytes: limit on the body as sent, the multipart framing included.
        timeout_s: limit on the time that it takes to arrive.

    Raises:
        ProblemError: with the status that the kind of fault has.
    """
    media_type = media_type_of(request)
    if not (media_type in (_MULTIPART, _BYTES) or media_type.startswith("image/")):
        advice = f"send {_MULTIPART} with the field {FIELD!r}, or the bytes of the image as {_BYTES} or image/*"
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, not_accepted(media_type, advice))
    refuse_coding(request)
    if media_type != _MULTIPART:
        return await read_body(request, max_bytes=max_bytes, timeout_s=timeout_s)
    async with _arriving_within(timeout_s):
        return await _read_field(request, max_bytes)


def refuse_coding(request: Request) -> None:
    """Refuse a body that is compressed.

    Raises:
        ProblemError: it says so.
    """
    if (coding := request.headers.get("content-encoding", "identity")).lower() != "identity":
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, f"content encoding {quote(coding)} is not accepted; send it plain")


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """Read the body of a request as sent; arguments and errors as ``read_upload``."""
    async with _arriving_within(timeout_s):
        return b"".join([chunk async for chunk in _limited(request, max_bytes)])


@asynccontextmanager
async def _arriving_within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ProblemError(
            UPLOAD_TIMEOUT, f"the body did not arrive within {seconds:.3g} s", {"Connection": "close"}
        ) from error


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body in chunks. A length that the client declares is believed only where it is too large."""
    too_large = ProblemError(
        UPLOAD_TOO_LARGE, f"the request body is larger than the {max_bytes} bytes that are accepted"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    received = 0
    with service_of(request).backlog.holding() as hold:  # until it is complete, when ``inspect`` counts it
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            try:
                hold(len(chunk))
            except TooMuchHeld as error:
                raise queue_full(service_of(request), str(error)) from error
            yield chunk


async def _read_field(request: Request, max_bytes: int) -> bytes:
    """The file in the field ``image``, which must be the form's only part."""
    files: list[File] = []
    complete = False

    def take_file(file: File) -> None:
        if file.field_name != FIELD.encode():
            refuse(file)
        if files:
            raise ProblemError(INVALID_REQUEST, f"the form has more than one file {FIELD!r}; send exactly one")
        files.append(file)

    def refuse(part: Field | File) -> None:
        name = (part.field_name or b"").decode(errors="replace")
        reason = "must be a file, with a file name, not text" if name == FIELD else f"is unknown; send {FIELD!r} alone"
        raise ProblemError(INVALID_REQUEST, f"form field {quote(name)} {reason}")

    def end() -> None:
        nonlocal complete
        complete = True

    _, options = parse_options_header(request.headers["content-type"])
    # In memory, whatever its size: images of parts do not belong in a folder of temporary files.
    config = {"MAX_MEMORY_FILE_SIZE": float("inf")}
    try:
        parser = FormParser(_MULTIPART, refuse, take_file, end, boundary=options.get(b"boundary"), config=config)
        async for chunk in _limited(request, max_bytes):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise ProblemError(MALFORMED_MULTIPART, f"the multipart body cannot be read: {error}") from error
    if not complete:
        raise ProblemError(MALFORMED_MULTIPART, "the multipart body ends before its closing boundary")
    if not files:
        raise ProblemError(INVALID_REQUEST, f"the form is empty; send the image as the file {FIELD!r}")
    content = files[0].file_object
    content.seek(0)
    return content.read()
