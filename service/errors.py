"""Every error answer has one shape, RFC 9457 problem details, except where a foreign protocol has its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

PROBLEM_JSON = "application/problem+json"

# What nginx logs for a client that left before its answer; nobody receives it.
CLIENT_CLOSED_REQUEST = 499

# What FastAPI says of a body that is not even text.
_UNPARSABLE_BODY = 400

# An answer must not grow with what a client sends wrong.
_LONGEST_QUOTE = 80
_MOST_FAULTS = 10


@dataclass(frozen=True)
class ProblemKind:
    """A kind of error: ``slug`` ends its type URI."""

    slug: str
    status: int
    title: str

    @property
    def type(self) -> str:
        return f"urn:plumbline:problem:{self.slug}"


MALFORMED_MULTIPART = ProblemKind("malformed-multipart", 400, "The multipart body cannot be read")
UNAUTHENTICATED = ProblemKind("unauthenticated", 401, "The service does not know who calls")
FORBIDDEN = ProblemKind("forbidden", 403, "The caller may not do this")
FOREIGN_ORIGIN = ProblemKind("foreign-origin", 403, "A page of another site sent the request")
UNKNOWN_CATEGORY = ProblemKind("unknown-category", 404, "There is no such category")
UNKNOWN_VERSION = ProblemKind("unknown-version", 404, "The category has no such version")
UNKNOWN_OPERATION = ProblemKind("unknown-operation", 404, "The version has no such operation")
NO_REGION_OF_INTEREST = ProblemKind("no-region-of-interest", 404, "All of the image counts")
UNKNOWN_INSPECTION = ProblemKind("unknown-inspection", 404, "There is no such inspection")
PICTURE_NOT_KEPT = ProblemKind("picture-not-kept", 404, "The picture is not kept")
RECORDS_OFF = ProblemKind("records-off", 404, "Inspections are not recorded")
NOT_FOUND = ProblemKind("not-found", 404, "There is no such address")
METHOD_NOT_ALLOWED = ProblemKind("method-not-allowed", 405, "The method is not allowed here")
NOT_EXTENDABLE = ProblemKind("not-extendable", 409, "The category's bank cannot be extended")
INSPECTIONS_UNUSABLE = ProblemKind("inspections-unusable", 409, "Some of the inspections cannot be used for this")
EXTENSION_UNDER_WAY = ProblemKind("extension-under-way", 409, "Another version is being made")
NOT_EXPLAINABLE = ProblemKind("not-explainable", 409, "The category's scores cannot be explained")
VERSION_UNAVAILABLE = ProblemKind("version-unavailable", 409, "The version cannot be loaded")
MODEL_MEMORY = ProblemKind("model-memory", 409, "The version does not fit into the memory for models")
VERSION_IN_USE = ProblemKind("version-in-use", 409, "The version is active or the shadow")
NO_EARLIER_VERSION = ProblemKind("no-earlier-version", 409, "There is no version to go back to")
STORE_READ_ONLY = ProblemKind("store-read-only", 409, "The service may not write to the model store")
UPLOAD_TIMEOUT = ProblemKind("upload-timeout", 408, "The upload took too long")
UPLOAD_TOO_LARGE = ProblemKind("upload-too-large", 413, "The upload has too many bytes")
IMAGE_TOO_LARGE = ProblemKind("image-too-large", 413, "The image has too many pixels")
UNSUPPORTED_MEDIA_TYPE = ProblemKind("unsupported-media-type", 415, "The content type is not accepted")
UNSUPPORTED_IMAGE = ProblemKind("unsupported-image", 415, "The image format is not accepted")
UNKNOWN_HOST = ProblemKind("unknown-host", 421, "The service is not called that")
INVALID_REQUEST = ProblemKind("invalid-request", 422, "The request is not valid")
UNREADABLE_IMAGE = ProblemKind("unreadable-image", 422, "The upload cannot be read as an image")
RATE_LIMITED = ProblemKind("rate-limited", 429, "The caller sent too many requests")
INTERNAL_ERROR = ProblemKind("internal-error", 500, "The service made a mistake")
CATEGORY_UNAVAILABLE = ProblemKind("category-unavailable", 503, "The category is not available")
RECORDS_UNAVAILABLE = ProblemKind("records-unavailable", 503, "Records cannot be written or read")
STORE_UNAVAILABLE = ProblemKind("store-unavailable", 503, "The model store cannot be used now")
QUEUE_FULL = ProblemKind("queue-full", 503, "Too much is waiting")
WORKER_UNAVAILABLE = ProblemKind("worker-unavailable", 503, "The worker cannot score")
DEVICE_OUT_OF_MEMORY = ProblemKind("device-out-of-memory", 503, "The device has not enough memory")
DEADLINE_TOO_SHORT = ProblemKind("deadline-too-short", 503, "The answer would come after the deadline")
DEADLINE_EXCEEDED = ProblemKind("deadline-exceeded", 504, "The deadline has passed")


class InvalidParameter(BaseModel):
    """One value of a request that is not valid."""

    location: str = Field(description="where it is, such as query.opacity")
    message: str


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str = Field(description="a URN that names the kind of problem")
    title: str = Field(description="the kind of problem in words, the same for every occurrence")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong this time, what is accepted, what to do")
    instance: str = Field(description="a URN with the request's id, under which the service logged it")
    errors: list[InvalidParameter] | None = Field(default=None, description="the values that are not valid")


class ProblemError(HTTPException):
    """Ends a request with a problem; of the framework's kind, so that it passes where a body is being read."""

    def __init__(self, kind: ProblemKind, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(kind.status, detail, headers)
        self.kind = kind

    def __str__(self) -> str:
        return self.detail


class ErrorShape(ABC):
    """How a foreign protocol shows problems.

    Attributes:
        schema: of the answer's JSON.
    """

    schema: type[BaseModel]

    @abstractmethod
    def status(self, kind: ProblemKind) -> int:
        """The protocol's status for a kind of problem."""

    @abstractmethod
    def answer(self, request: Request, kind: ProblemKind, detail: str, headers: Mapping[str, str]) -> Response:
        """The answer to a request that failed."""

    def responses(self, *kinds: ProblemKind) -> dict[int | str, dict[str, Any]]:
        """As ``problem_responses``."""
        return _responses((*kinds, INTERNAL_ERROR), self)


def shape_of(app: FastAPI, path: str) -> ErrorShape | None:
    """How errors look at a path; None for problem details."""
    shapes: Mapping[str, ErrorShape] = app.state.error_shapes
    return next((shape for prefix, shape in shapes.items() if f"{path}/".startswith(f"{prefix}/")), None)


def problem_response(
    request: Request,
    kind: ProblemKind,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: list[InvalidParameter] | None = None,
) -> Response:
    """The answer to a request that failed, in the shape of the protocol whose address was asked."""
    request.state.log["problem"] = kind.slug
    if (shape := shape_of(request.app, request.url.path)) is not None:
        return shape.answer(request, kind, detail, headers or {})
    problem = Problem(
        type=kind.type,
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=f"urn:uuid:{request.state.id}",
        errors=errors,
    )
    content = problem.model_dump(exclude_none=True)
    return JSONResponse(content, status_code=kind.status, headers=headers, media_type=PROBLEM_JSON)


def problem_responses(*kinds: ProblemKind) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of the problems that a route may answer with."""
    return _responses((*kinds, INTERNAL_ERROR))


def document_problems(operation: dict[str, Any], shape: ErrorShape | None, *kinds: ProblemKind) -> None:
    """Add problems to an operation of an OpenAPI document; a status that it answers in another shape stays as it is."""
    responses = operation["responses"]
    for status, response in _responses(kinds, shape).items():
        known = responses.setdefault(str(status), response)
        if known is not response and known.get("content") == response["content"]:
            known["description"] += f"; {response['description']}"


def _responses(kinds: tuple[ProblemKind, ...], shape: ErrorShape | None = None) -> dict[int | str, dict[str, Any]]:
    titles: dict[int | str, list[str]] = {}
    for kind in kinds:
        text = f"{kind.title} (`{kind.slug}`)" if shape is None else kind.title
        titles.setdefault(kind.status if shape is None else shape.status(kind), []).append(text)
    media_type, model = (PROBLEM_JSON, Problem) if shape is None else ("application/json", shape.schema)
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {status: {"description": "; ".join(texts), "content": content} for status, texts in titles.items()}


def quote(text: str) -> str:
    """A client's text for a message: escaped, and cut where it is long."""
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…")


def media_type_of(request: Request) -> str:
    """What a request says that its body is, without parameters; empty where it says nothing."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def not_accepted(media_type: str, advice: str) -> str:
    """Why a body of that type is refused, for a message.

    Args:
        media_type: as ``media_type_of`` gives it.
        advice: what to send.
    """
    given = f"content type {quote(media_type)}" if media_type else "a body without a content type"
    return f"{given} is not accepted; {advice}"


def faults(error: ValidationError, most: int) -> str:
    """What pydantic found wrong with a request, as one sentence a fault; none of its values."""
    found = error.errors(include_url=False, include_input=False)[:most]
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the request'}: {fault['msg']}" for fault in found)


def install_error_handlers(app: FastAPI, shapes: Mapping[str, ErrorShape]) -> None:
    """Answer every error of the application with a problem.

    Args:
        shapes: what errors look like below other prefixes of paths.
    """
    app.state.error_shapes = shapes
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problem_response(request, error.kind, error.detail, headers=error.headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: an unknown address or a wrong method."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {quote(request.url.path)}"
    if error.status_code == METHOD_NOT_ALLOWED.status:
        allowed = _allowed_methods(request) or (error.headers or {}).get("Allow", "")
        headers = {"Allow": allowed}
        return problem_response(request, METHOD_NOT_ALLOWED, f"{asked} is not possible; use {allowed}", headers=headers)
    if error.status_code == _UNPARSABLE_BODY:
        return problem_response(request, INVALID_REQUEST, "the body cannot be read as JSON; send JSON in UTF-8")
    if error.status_code == NOT_FOUND.status:
        return problem_response(request, NOT_FOUND, f"there is no {asked}; there is {_routes(request)}, and /docs")
    kind = ProblemKind("http-error", error.status_code, "The request was refused")
    return problem_response(request, kind, str(error.detail), headers=error.headers)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if any(isinstance(fault["input"], bytes) for fault in error.errors()):  # only what says that it is JSON is read so
        detail = not_accepted(media_type_of(request), "send JSON as application/json")
        return problem_response(request, UNSUPPORTED_MEDIA_TYPE, detail)
    errors = [_invalid_parameter(fault) for fault in error.errors()[:_MOST_FAULTS]]
    detail = "; ".join(f"{problem.location}: {problem.message}" for problem in errors)
    return problem_response(request, INVALID_REQUEST, detail, errors=errors)


def _invalid_parameter(fault: dict[str, Any]) -> InvalidParameter:
    location = ".".join(str(part) for part in fault["loc"])
    message, given = fault["msg"].removeprefix("Value error, "), quote(str(fault["input"]))
    match fault["type"]:
        case "json_invalid":  # whose input is none, and whose place is the character
            location, message = "body", f"{message} at character {fault['loc'][1]}: {fault['ctx']['error']}"
        case "missing":  # whose input is all that was given beside it
            pass
        case "extra_forbidden":
            message += f": {given}"
        case _:
            message += f", not {given}"
    return InvalidParameter(location=location[:_LONGEST_QUOTE], message=message)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _allowed_methods(request: Request) -> str:
    """Of all routes of an address; the framework names those of the first alone."""
    path = getattr(request.scope.get("route"), "path_format", "")
    methods = [method.upper() for method in request.app.openapi()["paths"].get(path, ())]
    return ", ".join([*methods, "HEAD"] if "GET" in methods else methods)


def _routes(request: Request) -> str:
    paths = request.app.openapi()["paths"]
    return ", ".join(f"{method.upper()} {path}" for path, methods in paths.items() for method in methods)
