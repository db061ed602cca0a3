"""Errors of the online endpoint, in OpenAI's format."""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pipelines.errors import RowProblem

_STATUS = {
    "invalid_row": 400, "invalid_request": 400, "context_length": 400, "unsupported": 400,
    "template": 400, "unavailable": 503,
}  # fmt: skip
_CODES = {"context_length": "context_length_exceeded", "unavailable": "tier_unavailable"}


class ApiError(Exception):
    """What a client did wrong, or what it cannot have; the app turns it into a response."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }


def error_of(problem: RowProblem, retry_after_s: float) -> ApiError:
    """Who is wrong, the request or this side, is told by the problem's kind."""
    status = _STATUS.get(problem.kind, 500)
    kind = "invalid_request_error" if status == 400 else "server_error"
    field, separator, _ = problem.message.partition(":")
    names = field.removeprefix("body.")
    param = names if separator and names.isidentifier() else None
    code = _CODES.get(problem.kind, problem.kind)
    again = retry_after_s if status == 503 else None
    return ApiError(status, problem.message, kind, code, param, again)


def problem_of(row: Mapping[str, Any]) -> RowProblem | None:
    """Of a row that has ended."""
    if row["status"] == "ok":
        if row["embedding"] is None or row["url"] == "/v1/embeddings":
            return None
        return RowProblem("unsupported", "model: this tier embeds; ask it at /v1/embeddings")
    return RowProblem(row["error_kind"] or "engine", row["error"] or "no answer")


def answer_errors(app: FastAPI) -> None:
    """Let the app tell everything that goes wrong in OpenAI's format."""
    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(RequestValidationError, _answer_misfit)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_failure)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    elif error.status == 429:
        # OpenAI's clients try every 429 again unless they are told not to.
        headers["x-should-retry"] = "false"
    return JSONResponse(error.body, error.status, headers)


async def _answer_misfit(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    message = f"{param or 'the body'}: {first['msg']}"
    return await _answer(
        request, ApiError(400, message, "invalid_request_error", param=param or None)
    )


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    """What the framework refuses: paths and methods that there are not, forms that are none."""
    assert isinstance(error, HTTPException)
    body = ApiError(error.status_code, error.detail, "invalid_request_error").body
    headers = error.headers
    if error.status_code == 405:
        # The framework names those of the first route of this path alone.
        headers = {"allow": ", ".join(sorted(_methods(request)))}
    return JSONResponse(body, error.status_code, headers)


def _methods(request: Request) -> Iterator[str]:
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            yield from route.methods


async def _answer_failure(request: Request, _: Exception) -> JSONResponse:
    """Of ours; the framework logs it."""
    message = "the endpoint failed; its log says why"
    return await _answer(request, ApiError(500, message, "server_error", "internal"))
