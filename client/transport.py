"""What both clients do alike with httpx: set up connections, and take an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx

DEFAULT_TIMEOUT_S = 30.0

_KEY = re.compile(r"[!-~]+")

# The service closes an idle connection after 5 s. One that is closed while a score is sent on it cannot be told from
# one that breaks later, and the score would not be tried again; so idle connections are given up well before.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)


@dataclass(frozen=True)
class Reply:
    """An answer, its body read.

    Attributes:
        headers: by any spelling of their names.
        asked: what it is the answer to, for messages.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    asked: str

    @classmethod
    def of(cls, response: httpx.Response, content: bytes) -> Self:
        """Of httpx's answer and its decoded body."""
        request = response.request
        return cls(response.status_code, response.headers, content, f"{request.method} {request.url}")


def options(url: str, api_key: str | None) -> dict[str, Any]:
    """What both kinds of httpx's clients take.

    Raises:
        ValueError: not the URL of a service, or no API key; the message has none of the key.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is not the URL of a service, such as http://127.0.0.1:8000")
    headers = {"User-Agent": "plumbline-client"}
    if api_key is not None:
        if not _KEY.fullmatch(api_key):
            raise ValueError("the API key is empty or holds a space, a line break or another character that no key has")
        headers["Authorization"] = f"Bearer {api_key}"
    return {"base_url": parsed, "headers": headers, "limits": _LIMITS}
