"""The HTTP app of an endpoint: who may ask which routes, and what lives as long as it does."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from actors.online_service import Service
from jobs.online_api import api_router
from jobs.online_auth import Authenticate
from jobs.online_document import document
from jobs.online_errors import answer_errors
from jobs.online_watching import Health
from pipelines.serve_config import Serve

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LAST_WORDS_S = 5.0
Running = Callable[[], AbstractAsyncContextManager[None]]


def build_app(
    service: Service,
    serve: Serve,
    health: Health,
    authenticate: Authenticate | None = None,
    routers: Sequence[APIRouter] = (),
    open_routers: Sequence[APIRouter] = (),
    running: Sequence[Running] = (),
) -> FastAPI:
    """Args:
    health: whether the endpoint is `ready`.
    authenticate: the dependency of every route but health and `open_routers`.
    running: what lives as long as the app.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        stack = AsyncExitStack()
        for enter in running:
            await stack.enter_async_context(enter())
        yield
        # Who should hear the last of it may be gone already.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await service.books.settled()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await stack.aclose()

    # Its own documents would need no key.
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    answer_errors(app)
    app.add_middleware(_RequestIds)
    asks = [Depends(authenticate or _nobody)]
    for router in [*routers, api_router(service, serve), _document_router(app, service)]:
        app.include_router(router, dependencies=asks)
    for router in [*open_routers, _health_router(health)]:
        app.include_router(router)
    return app


async def _nobody(request: Request) -> None:
    request.state.tenant, request.state.admin = None, True


def _document_router(app: FastAPI, service: Service) -> APIRouter:
    router, told = APIRouter(), dict[str, Any]()

    @router.get("/openapi.json", include_in_schema=False)
    def openapi() -> dict[str, Any]:
        if not told:
            told.update(document(app, ["auto", *service.tiers]))
        return told

    return router


def _health_router(health_of: Health) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> JSONResponse:
        is_ready = bool((await health_of())["ready"])
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    return router


class _RequestIds:
    """Every request has an id: its own, if it brings a plain one, and tells it back."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                rest = [h for h in message["headers"] if h[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*rest, (b"x-request-id", name.encode())]}
            await send(message)

        await self._app(scope, receive, named)
