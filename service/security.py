"""Who calls, and what they may do: keys, scopes, and what a route asks of its callers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from service.errors import FORBIDDEN, UNAUTHENTICATED, ErrorShape, ProblemError, document_problems

if TYPE_CHECKING:
    from service.keys import Keyring

_REALM = 'Bearer realm="plumbline"'
_HINT = "send one as 'Authorization: Bearer KEY' ('plumbline keys create' makes them)"

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A key that `plumbline keys create` made. A service that asks for no keys ignores it.",
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


class Access:
    """Tells who calls the service.

    Args:
        keyring: the keys that are accepted; None to ask nobody for one.
    """

    def __init__(self, keyring: Keyring | None) -> None:
        self.keyring = keyring

    def identify(self, key: str | None) -> Caller:
        """The caller who sent a key.

        Raises:
            ProblemError: there is none, or it is not accepted.
        """
        if self.keyring is None:
            return ANONYMOUS
        if key is None:
            raise _unauthenticated(f"the request has no key; {_HINT}", _REALM)
        record = self.keyring.find(key)
        if record is None:
            raise _unauthenticated(f"the key is not known; {_HINT}", f'{_REALM}, error="invalid_token"')
        if (obstacle := record.obstacle()) is not None:
            # Only who holds the key learns this.
            raise _unauthenticated(f"{obstacle}; {_HINT}", f'{_REALM}, error="invalid_token"')
        return Caller(record.name, frozenset(record.scopes))


def access_of(request: Request) -> Access:
    """Who tells the callers of a request's service."""
    access: Access = request.app.state.access
    return access


def requires(*scopes: Scope) -> Callable[..., Awaitable[None]]:
    """A dependency for routes that only callers with one of the scopes may use; without a scope, any known caller.

    Leaves the caller in ``request.state.caller``. The OpenAPI document shows it and the problems it may answer with.
    """

    async def check(request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
        caller = identified(request, None if sent is None else sent.credentials)
        if scopes and caller.scopes.isdisjoint(scopes):
            wanted = " or ".join(scopes)
            challenge = f'{_REALM}, error="insufficient_scope", scope="{" ".join(scopes)}"'
            raise ProblemError(
                FORBIDDEN,
                f"{caller.name} may not do this: the key lacks the scope {wanted}; 'plumbline keys create NAME --scope "
                f"{scopes[0]}' makes one that has it",
                {"WWW-Authenticate": challenge},
            )

    return check


def identified(request: Request, key: str | None) -> Caller:
    """The caller of a request, told once however many dependencies ask.

    Raises:
        ProblemError: as ``Access.identify``.
    """
    if (known := getattr(request.state, "caller", None)) is not None:
        caller: Caller = known
        return caller
    caller = access_of(request).identify(key)
    request.state.caller = caller
    request.state.log["caller"] = caller.name
    return caller


def document_security(operation: dict[str, Any], shape: ErrorShape | None) -> None:
    """Add to an operation of an OpenAPI document what ``requires`` may answer, where it has it."""
    if operation.get("security"):
        document_problems(operation, shape, UNAUTHENTICATED, FORBIDDEN)


def _unauthenticated(detail: str, challenge: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, {"WWW-Authenticate": challenge})
