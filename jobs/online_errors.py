"""Errors of the online endpoint, in OpenAI's format."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from pipelines.errors import RowProblem

_STATUS = {
    "invalid_row": 400, "invalid_request": 400, "context_length": 400, "unsupported": 400,
    "unavailable": 503,
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
        return None
    return RowProblem(row["error_kind"] or "engine", row["error"] or "no answer")


def answer_errors(app: FastAPI) -> None:
    """Let the app answer every `ApiError`, and what does not fit a route, in OpenAI's format."""
    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(RequestValidationError, _answer_misfit)


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
