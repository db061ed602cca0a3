"""The HTTP app of an endpoint: OpenAI's routes over a `Service`."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from actors.online_request import Asked, Refused, Unreachable
from actors.online_service import Service
from actors.online_tier import Overloaded, TierGone
from jobs.online_answers import Speech, base64_vectors, headers_of, joined
from jobs.online_auth import Authenticate
from jobs.online_document import document
from jobs.online_errors import ApiError, answer_errors, error_of, problem_of
from jobs.online_reading import Envelope, check_limit, deadline_of, fitted, read_body, split
from jobs.online_watching import Health
from pipelines.errors import RowProblem
from pipelines.openai_batch import answer_body
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


def api_router(service: Service, serve: Serve) -> APIRouter:
    """OpenAI's routes."""
    router, api = APIRouter(prefix="/v1"), _Api(service, serve)

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        return await api.answer(request, "/v1/chat/completions")

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        return await api.answer(request, "/v1/completions")

    @router.post("/embeddings")
    async def embeddings(request: Request) -> Response:
        return await api.answer(request, "/v1/embeddings")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name) for name in ["auto", *service.tiers]]}

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        api.check_model(name)
        return _model(name)

    return router


class _Api:
    def __init__(self, service: Service, serve: Serve) -> None:
        self._service, self._serve = service, serve

    def check_model(self, name: str) -> None:
        """Raises: ApiError 404 if it is neither auto nor a tier."""
        names = ["auto", *self._service.tiers]
        if name not in names:
            message = f"no model {name!r}; there are {', '.join(names)}"
            raise ApiError(404, message, "invalid_request_error", "model_not_found", "model")

    async def answer(self, request: Request, url: str) -> Response:
        body = await read_body(request, self._serve.max_body_bytes)
        told, patience = fitted(Envelope, body), deadline_of(request, self._serve.deadline_s)
        self.check_model(told.wanted)
        stream = bool(told.stream)
        bodies = split(url, body, stream, self._serve)
        asked = [self._asked(request, url, one, stream) for one in bodies]
        if stream:
            return await self._streamed(request, asked[0], told, patience)
        await _unless_gone(request, self._all_finished(asked), patience)
        rows = [one.row for one in asked]
        answered = joined([answer_body(row) for row in rows], int(time.time()))
        if url == "/v1/embeddings" and body.get("encoding_format") == "base64":
            base64_vectors(answered)
        return JSONResponse(answered, headers=headers_of(asked))

    async def _all_finished(self, asked: Sequence[Asked]) -> None:
        """Raises: ApiError, the first; then the others are given up."""
        try:
            async with asyncio.TaskGroup() as texts:
                for one in asked:
                    texts.create_task(self._finished(one))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _finished(self, asked: Asked) -> None:
        """Raises: ApiError if there is no answer."""
        with _told(self._service, self._serve, asked):
            async with self._service.under_way(asked) as flight:
                await flight.row()
            asked.spoke()
            if (problem := problem_of(asked.row)) is not None:
                raise error_of(problem, self._serve.retry_after_s)

    async def _streamed(
        self, request: Request, asked: Asked, told: Envelope, patience: float
    ) -> Response:
        """The response begins with its first piece, so that what fails before has its status."""
        speech = Speech(asked, told.wanted, told.wants_usage)
        events = self._events(asked, speech)
        first = await _unless_gone(request, anext(events), patience)

        async def whole() -> AsyncIterator[str]:
            try:
                yield first
                async for event in events:
                    yield event
            finally:
                await events.aclose()

        headers = {**headers_of([asked]), "cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(whole(), media_type="text/event-stream", headers=headers)

    async def _events(self, asked: Asked, speech: Speech) -> AsyncGenerator[str]:
        with _told(self._service, self._serve, asked):
            async with self._service.under_way(asked) as flight:
                async for piece in flight.said():
                    asked.spoke()
                    asked.row = {**asked.row, "tier": flight.progress["tier"]}
                    for chunk in speech.piece(piece):
                        yield _event(chunk)
                await flight.row()
            asked.spoke()
            problem = problem_of(asked.row)
            if problem is not None:
                error = error_of(problem, self._serve.retry_after_s)
                if not speech.begun:
                    raise error
                yield _event(error.body)
            else:
                for chunk in speech.end(answer_body(asked.row)):
                    yield _event(chunk)
            yield "data: [DONE]\n\n"

    def _asked(self, request: Request, url: str, body: dict[str, Any], stream: bool) -> Asked:
        tenant = request.state.tenant
        row = self._service.read(url, body, tenant)
        if isinstance(row, RowProblem):
            raise error_of(row, self._serve.retry_after_s)
        check_limit(body, self._serve)
        trace = request.headers.get("traceparent")
        return Asked(request.state.request_id, tenant, url, stream, row, trace)


class _told:
    """Turns what the service raises into errors of the API."""

    def __init__(self, service: Service, serve: Serve, asked: Asked) -> None:
        self._service, self._serve, self._asked = service, serve, asked

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Refused):
            said = error.refusal
            raise ApiError(
                said.status, said.message, said.kind, said.code, retry_after_s=said.retry_after_s
            )
        if isinstance(error, Overloaded):
            self._service.books.refused("overloaded", self._asked.tenant)
            message = "too many requests wait already; try again"
            again = self._serve.retry_after_s
            raise ApiError(429, message, "rate_limit_error", "overloaded", retry_after_s=again)
        if isinstance(error, Unreachable):
            message, again = "a part of the endpoint is gone; try again", self._serve.retry_after_s
            code = "tier_unavailable" if isinstance(error, TierGone) else "unavailable"
            raise ApiError(503, message, "server_error", code, retry_after_s=again)


async def _unless_gone(request: Request, work: Any, seconds: float) -> Any:
    """The work's result, unless the client hangs up or its time is up: then it is given up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, gone], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ApiError(499, "the client hung up", "invalid_request_error", "cancelled")
        message = f"no answer within {seconds:g} s"
        raise ApiError(504, message, "server_error", "deadline_exceeded")
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(told: Any) -> str:
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "nightmill"}


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


__all__ = ["api_router", "build_app"]
