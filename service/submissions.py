"""From an HTTP request of our own API to a submission, and to its inspection while the client waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Header
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request

from models.explanation import Method
from service.admission import admit
from service.errors import INVALID_REQUEST, ProblemError
from service.inspection import Inspection, Label, Submission, inspect, service_of, timed
from service.uploads import read_upload

Result = TypeVar("Result")

Version = Annotated[int, Field(ge=1, lt=10**18)]


class InspectionQuery(BaseModel):
    """What every request for an inspection may say of its image."""

    model_config = ConfigDict(extra="forbid")

    version: Version | None = Field(
        default=None, description="the version that scores; by default the active one. Another one is loaded first"
    )
    part: Label | None = Field(default=None, description="the sender's id of the part, for the record")
    lot: Label | None = Field(default=None, description="the sender's id of the lot, for the record")


async def set_deadline(
    request: Request,
    timeout_s: Annotated[
        float | None,
        Header(
            alias="X-Request-Timeout",
            gt=0,
            allow_inf_nan=False,
            description="Seconds from the request's arrival until its answer is of no more use. What would come later "
            "is refused at once (503), or given up as soon as that shows (504). The service's settings have the "
            "default and the most.",
        ),
    ] = None,
) -> None:
    """A dependency of routes that score: leaves the deadline, on the clock of ``time.monotonic``, in ``request.state``.

    It awaits nothing: one that is not ``async`` would cost every request a turn on another thread.

    Raises:
        ProblemError: more was asked for than the settings allow.
    """
    settings = service_of(request).settings
    if timeout_s is not None and timeout_s > settings.max_request_timeout_s:
        most = f"at most {settings.max_request_timeout_s:g} s are accepted"
        raise ProblemError(INVALID_REQUEST, f"header.X-Request-Timeout: it is {timeout_s:g}; {most}")
    request.state.deadline = request.state.begun + (timeout_s or settings.request_timeout_s)


async def inspect_upload(
    request: Request, category: str, query: InspectionQuery, output: str, method: Method | None = None
) -> Inspection:
    """Read, decode and score the image of a request.

    Args:
        output: what was asked for.
        method: to explain the score by, if that was asked for.

    Raises:
        ProblemError: the request or its image is not acceptable, or the service cannot score now.
        ClientDisconnect: the client left; its image is no longer scored if that had not begun.
    """
    seconds, service = dict[str, float](), service_of(request)
    begun, deadline = request.state.begun, request.state.deadline
    served = await admit(service, category, query.version, deadline=deadline, explained=method is not None)
    request.state.log.update(category=category, version=served.version)
    with timed(seconds, "upload"):
        max_bytes, timeout_s = service.settings.max_upload_bytes, deadline - time.monotonic()
        data = await read_upload(request, max_bytes=max_bytes, timeout_s=timeout_s)
    submission = Submission(
        id=request.state.id,
        served=served,
        data=data,
        caller=request.state.caller,
        protocol="plumbline",
        output=output,
        begun=begun,
        deadline=deadline,
        seconds=seconds,
        part=query.part,
        lot=query.lot,
    )
    inspection = await unless_client_leaves(request, inspect(service, submission, method))
    request.state.log.update(verdict=inspection.prediction.verdict, image_score=inspection.prediction.image_score)
    return inspection


async def unless_client_leaves(request: Request, coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Await a coroutine, or cancel it when the client closes the connection; the body must have been read.

    Raises:
        ClientDisconnect: the client left.
    """
    work = asyncio.create_task(coroutine)
    departure = asyncio.create_task(_departure(request))
    try:
        await asyncio.wait((work, departure), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        departure.cancel()


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
