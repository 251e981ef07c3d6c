"""Who calls, and what they may do: keys, scopes, and what a route asks of its callers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from service.errors import FORBIDDEN, RATE_LIMITED, UNAUTHENTICATED, ErrorShape, ProblemError, document_problems
from service.sigv4 import SignedRequest

if TYPE_CHECKING:
    from service.access import Access

REALM = 'Bearer realm="plumbline"'
"""How a 401 says that a key is wanted (RFC 6750)."""

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A key that `plumbline keys create` made. A service that asks for no keys ignores it.",
)

_signature = APIKeyHeader(
    name="Authorization",
    auto_error=False,
    scheme_name="signature",
    description="AWS Signature Version 4, by a key that `plumbline keys create NAME --kind aws` made. A service that "
    "asks for no keys ignores it.",
)


class Scope(StrEnum):
    """What a caller may do: score images, review inspections, administer models and settings. None implies another."""

    SCORE = "score"
    REVIEW = "review"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Who made a request, by the name that records and logs show."""

    name: str
    scopes: frozenset[Scope]


ANONYMOUS = Caller("anonymous", frozenset(Scope))
"""Everybody, where the service asks nobody who they are."""


def access_of(request: Request) -> Access:
    """Who tells the callers of a request's service."""
    access: Access = request.app.state.access
    return access


def requires(*scopes: Scope) -> Callable[..., Awaitable[None]]:
    """A dependency for routes that only callers with one of the scopes may use; without a scope, any known caller.

    Leaves the caller in ``request.state.caller``. The OpenAPI document shows it and the problems it may answer with.
    """

    async def check(request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
        _audit(request, scopes)
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is None:  # the first of the dependencies that ask
            caller = access_of(request).identify(None if sent is None else sent.credentials, _address(request))
        _let_in(request, caller, scopes)

    return check


def requires_signature(
    service: str, body: Callable[[Request], Awaitable[bytes]], *scopes: Scope
) -> Callable[..., Awaitable[None]]:
    """As ``requires``, for routes whose clients sign requests as those of AWS do.

    Args:
        service: the name that a request must be signed for, such as ``lookoutvision``.
        body: reads the body of a request; called once what costs less was found in order, and not at all where the
            service asks for no keys.
    """

    async def check(request: Request, _: Annotated[str | None, Security(_signature)]) -> None:
        _audit(request, scopes)
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is None:
            signed = access_of(request).identify_signer(
                _as_sent(request), service, partial(body, request), _address(request)
            )
            caller = await signed
        _let_in(request, caller, scopes)

    return check


def _audit(request: Request, scopes: tuple[Scope, ...]) -> None:
    """Have what would change anything audited, refused or not."""
    if scopes and Scope.SCORE not in scopes and request.method not in ("GET", "HEAD"):
        request.state.audited = True


def _address(request: Request) -> str:
    return "" if request.client is None else request.client.host


def _as_sent(request: Request) -> SignedRequest:
    headers = tuple((name.lower(), value) for name, value in request.headers.items())
    path, query = request.scope["raw_path"].decode("latin-1"), request.scope["query_string"].decode("latin-1")
    return SignedRequest(request.method, path, query, headers)


def _let_in(request: Request, caller: Caller, scopes: tuple[Scope, ...]) -> None:
    request.state.caller = caller
    request.state.log["caller"] = caller.name
    if scopes and caller.scopes.isdisjoint(scopes):
        wanted = " or ".join(scopes)
        raise ProblemError(
            FORBIDDEN,
            f"{caller.name} may not do this: the key lacks the scope {wanted}; 'plumbline keys create NAME --scope "
            f"{scopes[0]}' makes one that has it",
            {"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{" ".join(scopes)}"'},
        )


def document_security(operation: dict[str, Any], shape: ErrorShape | None) -> None:
    """Add to an operation of an OpenAPI document what ``requires`` may answer, where it stands."""
    if operation.get("security"):
        document_problems(operation, shape, UNAUTHENTICATED, FORBIDDEN, RATE_LIMITED)
