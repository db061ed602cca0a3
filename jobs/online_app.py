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

from actors.online_service import Asked, Overloaded, Refused, Service, TierGone
from jobs.online_answers import Speech, base64_vectors, headers_of, joined
from jobs.online_auth import Authenticate
from jobs.online_errors import ApiError, answer_errors, error_of, problem_of
from pipelines.errors import RowProblem
from pipelines.openai_batch import answer_body
from pipelines.serve_config import Serve

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LAST_WORDS_S = 5.0
_TEXTS = {"/v1/completions": "prompt", "/v1/embeddings": "input"}
_NOT_HERE = ("echo", "suffix", "best_of")
Running = Callable[[], AbstractAsyncContextManager[None]]


def build_app(
    service: Service,
    serve: Serve,
    authenticate: Authenticate | None = None,
    routers: Sequence[APIRouter] = (),
    open_routers: Sequence[APIRouter] = (),
    running: Sequence[Running] = (),
) -> FastAPI:
    """Args:
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
                await stack.aclose()

    app = FastAPI(title="nightmill", lifespan=lifespan, docs_url=None, redoc_url=None)
    answer_errors(app)
    app.add_middleware(_RequestIds)
    asks = [Depends(authenticate or _nobody)]
    for router in [*routers, api_router(service, serve)]:
        app.include_router(router, dependencies=asks)
    for router in [*open_routers, _health_router(service)]:
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

    def check_model(self, name: Any) -> None:
        """Raises: ApiError 404 if it is neither auto nor a tier."""
        names = ["auto", *self._service.tiers]
        if name not in names:
            message = f"no model {name!r}; there are {', '.join(names)}"
            raise ApiError(404, message, "invalid_request_error", "model_not_found", "model")

    async def answer(self, request: Request, url: str) -> Response:
        body = await self._body(request)
        stream = body.get("stream") is True
        asked = [self._asked(request, url, one, stream) for one in self._split(url, body)]
        if stream:
            return await self._streamed(request, asked[0], body)
        work = asyncio.gather(*(self._finished(one) for one in asked))
        await _unless_gone(request, work, self._deadline(request))
        rows = [one.row for one in asked]
        told = joined([answer_body(row) for row in rows], int(time.time()))
        if url == "/v1/embeddings" and body.get("encoding_format") == "base64":
            base64_vectors(told)
        return JSONResponse(told, headers=headers_of(asked))

    async def _finished(self, asked: Asked) -> None:
        """Raises: ApiError if there is no answer."""
        with _told(self._service, self._serve, asked):
            async with self._service.under_way(asked) as flight:
                await flight.row()
            asked.spoke()
            if (problem := problem_of(asked.row)) is not None:
                raise error_of(problem, self._serve.retry_after_s)

    async def _streamed(self, request: Request, asked: Asked, body: dict[str, Any]) -> Response:
        """The response begins with its first piece, so that what fails before has its status."""
        options = body.get("stream_options") or {}
        usage = isinstance(options, dict) and options.get("include_usage") is True
        events = self._events(asked, Speech(asked, str(body.get("model", "auto")), usage))
        first = await _unless_gone(request, anext(events), self._deadline(request))

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
        self._check_limit(body)
        trace = request.headers.get("traceparent")
        return Asked(request.state.request_id, tenant, url, stream, row, trace)

    def _check_limit(self, body: dict[str, Any]) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            if (body.get(name) or 0) > self._serve.max_tokens:
                message = f"{name}: at most {self._serve.max_tokens} here"
                raise ApiError(400, message, "invalid_request_error", param=name)

    def _split(self, url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """One body for each text: prompts and inputs may be lists of them."""
        self.check_model(body.get("model", "auto"))
        plain = {k: v for k, v in body.items() if k != "stream_options" and v is not None}
        for name in _NOT_HERE:
            if plain.pop(name, False) is not False:
                raise ApiError(400, f"{name}: not supported", "invalid_request_error", param=name)
        if url == "/v1/embeddings" and plain.get("encoding_format") == "base64":
            plain["encoding_format"] = "float"
        member = _TEXTS.get(url)
        texts = plain.get(member) if member else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return [plain]
        if not 0 < len(texts) <= self._serve.max_texts or (body.get("stream") and len(texts) > 1):
            most = 1 if body.get("stream") else self._serve.max_texts
            message = f"{member}: holds {len(texts)} texts; 1 to {most} are taken"
            raise ApiError(400, message, "invalid_request_error", param=member)
        return [{**plain, str(member): text} for text in texts]

    async def _body(self, request: Request) -> dict[str, Any]:
        content = b""
        async for chunk in request.stream():
            content += chunk
            if len(content) > self._serve.max_body_bytes:
                message = f"the body has more than {self._serve.max_body_bytes} bytes"
                raise ApiError(413, message, "invalid_request_error", "request_too_large")
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object", "invalid_request_error")
        return body

    def _deadline(self, request: Request) -> float:
        asked = request.headers.get("x-nightmill-deadline-s")
        if asked is None:
            return self._serve.deadline_s
        try:
            seconds = float(asked)
        except ValueError:
            seconds = -1.0
        if not seconds > 0:
            message = "x-nightmill-deadline-s: must be a number of seconds above 0"
            raise ApiError(400, message, "invalid_request_error")
        return min(seconds, self._serve.deadline_s)


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
            self._service.refused("overloaded", self._asked.tenant)
            message = "too many requests wait already; try again"
            again = self._serve.retry_after_s
            raise ApiError(429, message, "rate_limit_error", "overloaded", retry_after_s=again)
        if isinstance(error, TierGone):
            message, again = "the tier's replica is gone; try again", self._serve.retry_after_s
            raise ApiError(503, message, "server_error", "tier_unavailable", retry_after_s=again)


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


def _health_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> JSONResponse:
        status = await service.status()
        return JSONResponse({"ready": status["ready"]}, 200 if status["ready"] else 503)

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
