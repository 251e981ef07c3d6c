"""What a browser may be made to do here by the pages of others.

A page that a user of this machine visits can send requests to a service that listens on loopback only, and by DNS
rebinding (its own name made to point at 127.0.0.1) even read the answers. Where everybody is anonymous, that page would
be as well. So ``Host`` must be one of ours, and a request that a page of another site sends is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import FOREIGN_ORIGIN, UNKNOWN_HOST, problem_response, quote


class BrowserGuard:
    """Refuses requests under a foreign name, and those that a page of another site sends.

    Args:
        hosts: names that are ours; an IP address always is, because rebinding needs a name. None: any name, for
            services that ask for keys, which no page of another site has.
        origins: sites whose pages may use the service.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            headers = request.headers
            if not self._ours(host := headers.get("host", "")):
                detail = (
                    f"the service is not called {quote(host)}; PLUMBLINE_ALLOWED_HOSTS names the hosts it answers as"
                )
                await problem_response(request, UNKNOWN_HOST, detail)(scope, receive, send)
                return
            if headers.get("origin") not in self._origins and _foreign(request.method, headers):
                sender = quote(headers.get("origin", "another site"))
                detail = f"pages of {sender} may not use the service; PLUMBLINE_CORS_ORIGINS names those that may"
                await problem_response(request, FOREIGN_ORIGIN, detail)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _ours(self, host: str) -> bool:
        if self._hosts is None or not host:  # every browser sends one
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or _is_address(name)


def _foreign(method: str, headers: Headers) -> bool:
    """Whether a page of another site sent the request. Following its link is another matter."""
    if (site := headers.get("sec-fetch-site")) is not None:
        follows = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        return site not in ("same-origin", "none") and not follows
    # Browsers say the above only to loopback and over TLS.
    if (origin := headers.get("origin")) is not None:
        return origin.partition("://")[2].lower() != headers.get("host", "").lower()
    return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
