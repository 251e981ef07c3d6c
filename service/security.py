"""Who calls, and what they may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from starlette.requests import Request


class Scope(StrEnum):
    """What a caller may do: score images, review inspections, administer models and settings."""

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


def requires(scope: Scope) -> Callable[[Request], None]:
    """A dependency for routes that only callers of a scope may use; leaves the caller in ``request.state.caller``."""

    def check(request: Request) -> None:
        request.state.caller = ANONYMOUS

    return check
