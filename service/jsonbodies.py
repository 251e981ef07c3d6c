"""JSON that a request's body holds, read within limits: a framework reads a body of any size before it looks."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.errors import INVALID_REQUEST, UPLOAD_TIMEOUT, UPLOAD_TOO_LARGE
from service.uploads import read_body

Model = TypeVar("Model", bound=BaseModel)

JSON_PROBLEMS = (UPLOAD_TIMEOUT, UPLOAD_TOO_LARGE, INVALID_REQUEST)
"""What ``read_json`` may refuse."""

_MOST_BYTES = 2**20
_TIMEOUT_S = 30.0


async def read_json(request: Request, model: type[Model]) -> Model:
    """The body of a request.

    Raises:
        ProblemError: it is too long, or did not come.
        RequestValidationError: it is not what the model takes.
    """
    body = await read_body(request, max_bytes=_MOST_BYTES, timeout_s=_TIMEOUT_S)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_context=False)]
        raise RequestValidationError(faults) from error


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of the body that ``read_json`` reads; the model refers to no other."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
