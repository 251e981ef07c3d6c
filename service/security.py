"""Who calls, and what they may do: keys, scopes, and what a route asks of its callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from service.errors import FORBIDDEN, UNAUTHENTICATED, ErrorShape, ProblemError, document_problems
from service.sigv4 import ALGORITHM, SignatureError, SignedRequest, check_signature, read_signature

if TYPE_CHECKING:
    from service.keyring import Keyring
    from service.keys import KeyRecord

_REALM = 'Bearer realm="plumbline"'
_HINT = "send one as 'Authorization: Bearer KEY' ('plumbline keys create' makes them)"

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
        return self._admitted(record, f'{_REALM}, error="invalid_token"')

    async def identify_signer(
        self, request: SignedRequest, service: str, body: Callable[[], Awaitable[bytes]]
    ) -> Caller:
        """The caller who signed a request as clients of AWS do. Reads the body only once the rest is in order.

        Args:
            service: the name that it must be signed for.
            body: reads the body.

        Raises:
            ProblemError: it is not signed, or by a key that is not accepted.
        """
        if self.keyring is None:
            return ANONYMOUS
        try:
            signature = read_signature(request, service, datetime.now(UTC))
            found = self.keyring.secret(signature.access_key_id)
            if found is None:
                raise SignatureError(
                    "the access key id is not known; 'plumbline keys create NAME --kind aws' makes them"
                )
            record, secret = found
            digest = await asyncio.to_thread(sha256, await body())
            check_signature(request, signature, secret, digest.hexdigest())
        except SignatureError as error:
            raise _unauthenticated(str(error), ALGORITHM) from error
        return self._admitted(record, ALGORITHM)

    def _admitted(self, record: KeyRecord, challenge: str) -> Caller:
        """The holder of a key, who has shown to hold it and so may learn why it is not accepted."""
        if (obstacle := record.obstacle()) is not None:
            raise _unauthenticated(f"{obstacle}; 'plumbline keys create' makes a new one", challenge)
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
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is None:  # the first of the dependencies that ask
            caller = access_of(request).identify(None if sent is None else sent.credentials)
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
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is None:
            caller = await access_of(request).identify_signer(_as_sent(request), service, partial(body, request))
        _let_in(request, caller, scopes)

    return check


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
            {"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{" ".join(scopes)}"'},
        )


def document_security(operation: dict[str, Any], shape: ErrorShape | None) -> None:
    """Add to an operation of an OpenAPI document what ``requires`` may answer, where it stands."""
    if operation.get("security"):
        document_problems(operation, shape, UNAUTHENTICATED, FORBIDDEN)


def _unauthenticated(detail: str, challenge: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, {"WWW-Authenticate": challenge})
