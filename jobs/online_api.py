"""OpenAI's routes: what a client asks of a `Service`, answered whole or as a stream."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from actors.flights import TooLate
from actors.online_request import Asked, Refused, Unreachable
from actors.online_service import Service
from actors.online_tier import Overloaded, TierGone
from jobs.online_answers import Speech, base64_vectors, headers_of, joined
from jobs.online_errors import ApiError, error_of, problem_of
from jobs.online_reading import Envelope, check_limit, deadline_of, fitted, read_body, split
from pipelines.errors import RowProblem
from pipelines.openai_batch import answer_body
from pipelines.serve_config import Serve

_DONE = "data: [DONE]\n\n"


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
        asked = [self._asked(request, url, one, told) for one in bodies]
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
        until = asyncio.get_running_loop().time() + patience
        events = self._events(asked, speech, until)
        first = await _unless_gone(request, anext(events), patience)

        async def whole() -> AsyncIterator[str]:
            try:
                yield first
                async for event in events:
                    yield event
            except ApiError as error:
                # The status is long told; a stream that breaks off would say nothing at all.
                yield _event(error.body)
                yield _DONE
            finally:
                await events.aclose()

        headers = {**headers_of([asked]), "cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(whole(), media_type="text/event-stream", headers=headers)

    async def _events(self, asked: Asked, speech: Speech, until: float) -> AsyncGenerator[str]:
        """Raises: ApiError; also for what fails when pieces were told already."""
        with _told(self._service, self._serve, asked):
            async with self._service.under_way(asked) as flight:
                async for piece in flight.said(until):
                    asked.spoke()
                    asked.row = {**asked.row, "tier": flight.progress["tier"]}
                    for chunk in speech.piece(piece):
                        yield _event(chunk)
                await flight.row()
            asked.spoke()
            problem = problem_of(asked.row)
            if problem is not None:
                raise error_of(problem, self._serve.retry_after_s)
            for chunk in speech.end(answer_body(asked.row)):
                yield _event(chunk)
            yield _DONE

    def _asked(self, request: Request, url: str, body: dict[str, Any], told: Envelope) -> Asked:
        tenant = request.state.tenant
        row = self._service.read(url, body, tenant)
        if isinstance(row, RowProblem):
            raise error_of(row, self._serve.retry_after_s)
        check_limit(body, self._serve)
        trace = request.headers.get("traceparent")
        name, stream = request.state.request_id, bool(told.stream)
        return Asked(name, tenant, url, stream, row, trace, told.priority or 0)


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
        if isinstance(error, TooLate):
            raise _too_late("no whole answer in time")


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
        raise _too_late(f"no answer within {seconds:g} s")
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _too_late(message: str) -> ApiError:
    return ApiError(504, message, "server_error", "deadline_exceeded")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(told: Any) -> str:
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "nightmill"}
