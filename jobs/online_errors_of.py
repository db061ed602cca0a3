"""Why a request has no answer, as an error of OpenAI's API."""

from collections.abc import Mapping
from typing import Any

from jobs.online_errors import ApiError
from pipelines.errors import RowProblem

_STATUS = {
    "invalid_row": 400, "invalid_request": 400, "context_length": 400, "unsupported": 400,
    "unavailable": 503,
}  # fmt: skip
_CODES = {"context_length": "context_length_exceeded", "unavailable": "tier_unavailable"}


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
