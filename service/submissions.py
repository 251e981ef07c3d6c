"""From an HTTP request of our own API to a submission, and to its inspection while the client waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request

from models.explanation import Method
from service.inspection import Inspection, Submission, admit, inspect, service_of, timed
from service.uploads import read_upload

Result = TypeVar("Result")

Version = Annotated[int, Field(ge=1, lt=10**18)]
_Label = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]


class InspectionQuery(BaseModel):
    """What every request for an inspection may say of its image."""

    model_config = ConfigDict(extra="forbid")

    version: Version | None = Field(
        default=None, description="the version that scores; by default the active one. Another one is loaded first"
    )
    part: _Label | None = Field(default=None, description="the sender's id of the part, for the record")
    lot: _Label | None = Field(default=None, description="the sender's id of the lot, for the record")


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
    begun, seconds, service = time.monotonic(), dict[str, float](), service_of(request)
    served = await admit(service, category, query.version, explained=method is not None)
    request.state.log.update(category=category, version=served.version)
    settings = service.settings
    with timed(seconds, "upload"):
        data = await read_upload(request, max_bytes=settings.max_upload_bytes, timeout_s=settings.request_timeout_s)
    submission = Submission(
        id=request.state.id,
        served=served,
        data=data,
        caller=request.state.caller,
        protocol="plumbline",
        output=output,
        begun=begun,
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
