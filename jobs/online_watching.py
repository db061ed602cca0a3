"""What people and Prometheus see of an endpoint: `/metrics`, its status, and the page at `/`."""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from actors.observer import Observer
from jobs.online_errors import ApiError

_PAGE = Path(__file__).parent / "page" / "index.html"
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)

Health = Callable[[], Awaitable[Mapping[str, Any]]]


def watching_router(observer: Observer, health: Health) -> APIRouter:
    """Routes that need a key: metrics for admins, the status of one's own tenant for all.

    Args:
        health: the endpoint's tiers, and whether it is `ready`.
    """
    router = APIRouter()

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Metrics of all tenants, in Prometheus' text format."""
        if not request.state.admin:
            raise ApiError(
                403,
                "metrics name all tenants; use an admin's key (`nightmill key new --admin`)",
                "invalid_request_error",
                code="insufficient_permissions",
            )
        return Response(await observer.render(), media_type="text/plain; version=0.0.4")

    @router.get("/v1/nightmill/status")
    async def status(request: Request) -> dict[str, Any]:
        """Sums since the start, of one's own tenant or for an admin of all, and health."""
        tenant = None if request.state.admin else request.state.tenant
        return {
            "tenant": request.state.tenant,
            "of": "all" if tenant is None else tenant,
            "totals": await observer.totals(tenant),
            "health": await health(),
        }

    return router


def page_router() -> APIRouter:
    """The page: needs no key, because it holds nothing; what it shows it asks for with one."""
    router = APIRouter()
    html = _PAGE.read_text()
    headers = {
        "content-security-policy": _policy(html),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    return router


def _policy(html: str) -> str:
    """Lets run and style nothing but what stands in the page itself, by its hash."""
    hashes: dict[str, str] = {}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind] = f"{hashes.get(kind, '')} 'sha256-{digest}'".strip()
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
