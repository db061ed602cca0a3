"""What people and Prometheus see of an endpoint: `/metrics`, its status, and the page at `/`."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from actors.observer import Observer
from jobs.online_errors import ApiError

_PAGE = Path(__file__).parent / "page"
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

Health = Callable[[], Awaitable[Mapping[str, Any]]]


def watching_router(observer: Observer, health: Health) -> APIRouter:
    """Routes that need a key: metrics for admins, the status of one's own tenant for all.

    Args:
        health: the endpoint's tiers and whether they answer, as `Service.status` says.
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

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return _file("index.html", "text/html")

    @router.get("/page.css", include_in_schema=False)
    async def css() -> Response:
        return _file("page.css", "text/css")

    @router.get("/page.js", include_in_schema=False)
    async def script() -> Response:
        return _file("page.js", "text/javascript")

    return router


def _file(name: str, kind: str) -> Response:
    return Response((_PAGE / name).read_bytes(), media_type=kind, headers=_HEADERS)
