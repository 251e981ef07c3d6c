"""What can go wrong, as exceptions; all are PlumblineError."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from .transport import Reply

_TYPE_PREFIX = "urn:plumbline:problem:"
_PROBLEM_JSON = "application/problem+json"
_IMAGE_KINDS = frozenset({"upload-too-large", "image-too-large", "unsupported-image", "unreadable-image"})
_LONGEST_QUOTE = 200


class PlumblineError(Exception):
    """A call that did not succeed."""


class ConnectionFailed(PlumblineError):
    """No answer came: the service could not be reached, or the connection broke.

    Attributes:
        sent: whether any of the request may have reached the service.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class DeadlineExceeded(PlumblineError):
    """No answer came within the time that the call was given."""


class AnswerNotUnderstood(PlumblineError):
    """An answer that is not of this API: the address is of something else, or the service much newer."""


class InvalidParameter(BaseModel):
    """One value of a request that was refused."""

    location: str
    message: str


class ProblemError(PlumblineError):
    """The service, or a proxy before it, refused.

    Attributes:
        status: of HTTP.
        kind: the slug that names the kind of problem, such as "unreadable-image"; None where a proxy answered.
        detail: what is wrong this time, what is accepted, what to do.
        request_id: under which the service logged the request.
        retry_after_s: after as many seconds it may be tried again, if the answer says so.
        errors: the values that are not valid, where some are.
    """

    def __init__(
        self,
        status: int,
        kind: str | None,
        detail: str,
        request_id: str | None,
        retry_after_s: float | None,
        errors: tuple[InvalidParameter, ...] = (),
    ) -> None:
        super().__init__(f"{status} {kind or 'without problem details'}: {detail}")
        self.status = status
        self.kind = kind
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.errors = errors


class InvalidRequest(ProblemError):
    """A parameter, the body or the host name is not acceptable (400, 405, 408, 415, 421, 422)."""


class ImageRefused(InvalidRequest):
    """The image cannot be taken: too large, unreadable, or of a format that is not accepted (413, 415, 422)."""


class Unauthorized(ProblemError):
    """There is no API key, or it is not known (401)."""


class Forbidden(ProblemError):
    """The API key may not do this (403)."""


class NotFound(ProblemError):
    """There is no such category, version or address (404)."""


class Conflict(ProblemError):
    """It is not possible in the present state (409)."""


class RateLimited(ProblemError):
    """Too many requests of this API key (429)."""


class Unavailable(ProblemError):
    """The service cannot answer now (502, 503, 504)."""


class ServiceFault(ProblemError):
    """The service made a mistake (500)."""


_BY_STATUS: dict[int, type[ProblemError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


class _Problem(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: str
    detail: str
    errors: tuple[InvalidParameter, ...] = ()


def problem_of(reply: Reply) -> PlumblineError:
    """The exception for an answer that is no success."""
    request_id = reply.headers.get("x-plumbline-id")
    retry_after_s = _retry_after(reply.headers.get("retry-after"))
    if reply.headers.get("content-type", "").split(";")[0] == _PROBLEM_JSON:
        try:
            problem = _Problem.model_validate_json(reply.content)
        except ValidationError as error:
            return AnswerNotUnderstood(f"the problem details of {reply.asked} cannot be read: {error}")
        kind = problem.type.removeprefix(_TYPE_PREFIX)
        cls = ImageRefused if kind in _IMAGE_KINDS else _class(reply.status)
        return cls(reply.status, kind, problem.detail, request_id, retry_after_s, problem.errors)
    if reply.status < 400:
        return AnswerNotUnderstood(f"{reply.asked} was answered with status {reply.status}")
    detail = reply.content.decode(errors="replace")[:_LONGEST_QUOTE] or f"no reason to {reply.asked}"
    return _class(reply.status)(reply.status, None, detail, request_id, retry_after_s)


def _class(status: int) -> type[ProblemError]:
    return _BY_STATUS.get(status, InvalidRequest if status < 500 else ServiceFault)


def failure_of(error: httpx.HTTPError, request: httpx.Request) -> PlumblineError:
    """The exception for a request that got no answer."""
    reason = str(error) or type(error).__name__
    where = f"{request.url.scheme}://{request.url.netloc.decode()}"
    if isinstance(error, httpx.ConnectError):
        return ConnectionFailed(f"{where} cannot be reached: {reason}", sent=False)
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"{where} did not answer in time ({type(error).__name__})")
    return ConnectionFailed(f"the connection to {where} broke: {reason}", sent=True)


def _retry_after(text: str | None) -> float | None:
    """Seconds; the header holds them, or a date."""
    if text is None:
        return None
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
