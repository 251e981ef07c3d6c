"""The pages of documentation, without the internet, which a plant does not have, and under a strict policy."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi_offline import FastAPIOffline
from starlette.responses import HTMLResponse

STATIC = "/static-offline-docs"

# Both pages colour themselves by style attributes. By addresses that they make themselves (blob:), Swagger shows a
# picture that was answered, and ReDoc searches in a worker.
_POLICY = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_documented_app(**options: Any) -> FastAPI:
    """An application with ``/docs`` and ``/redoc``.

    Args:
        options: of ``FastAPI``.
    """
    app: FastAPI = FastAPIOffline(docs_url=None, redoc_url=None, static_url=STATIC, **options)
    icon, document = f"{STATIC}/favicon.png", str(app.openapi_url)
    swagger = get_swagger_ui_html(
        openapi_url=document,
        title=app.title,
        swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{STATIC}/swagger-ui.css",
        swagger_favicon_url=icon,
    )
    redoc = get_redoc_html(
        openapi_url=document,
        title=app.title,
        redoc_js_url=f"{STATIC}/redoc.standalone.js",
        redoc_favicon_url=icon,
        with_google_fonts=False,
    )
    for path, page in (("/docs", swagger), ("/redoc", redoc)):
        page.headers["Content-Security-Policy"] = _policy(bytes(page.body))
        app.add_api_route(path, _always(page), include_in_schema=False)
    return app


def _always(page: HTMLResponse) -> Callable[[], Awaitable[HTMLResponse]]:
    async def show() -> HTMLResponse:
        return page

    return show


def _policy(page: bytes) -> str:
    """The policy that lets the page's own scripts run, and none that somebody adds."""
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    digests = (base64.b64encode(sha256(script).digest()).decode() for script in scripts)
    return (
        _POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in digests))
        .replace("  ", " ")
        .replace(" ;", ";")
    )
