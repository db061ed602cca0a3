"""Errors of the online endpoint, in OpenAI's format."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse


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
