"""What an API's refusal means, how long to wait, and when to leave the server alone."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pipelines.errors import RowProblem

_ROW_STATUS = (400, 409, 413, 415, 422)
_SETUP_STATUS = (401, 403, 404)
_LIMITED = 429
_QUOTA = "insufficient_quota"
_TOO_LONG = ("context_length", "context length", "too long", "maximum context")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_MOST_RETRY_AFTER_S = 600.0


@dataclass(frozen=True)
class Fault:
    """Why there was no answer.

    Attributes:
        says: in words, for people.
        problem: of the row; it is not tried again.
        is_setup: no row can be answered before somebody mends the configuration.
        is_limited: the server lives and asks for patience.
        is_final: trying again would not help, another tier might.
        after_s: what the server asked to wait, in seconds.
    """

    says: str
    problem: RowProblem | None = None
    is_setup: bool = False
    is_limited: bool = False
    is_final: bool = False
    after_s: float | None = None


def fault_of(status: int, body: Any, headers: Mapping[str, str], now: datetime) -> Fault:
    """The meaning of an HTTP status that is no success.

    Args:
        body: parsed JSON, or text.
        headers: with lower-case names.
    """
    message, code = _told(body)
    says = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    if status in _SETUP_STATUS:
        return Fault(says, is_setup=True)
    if status == 402 or (status == _LIMITED and code == _QUOTA):
        return Fault(says, is_final=True)
    if status in _ROW_STATUS:
        too_long = any(sign in f"{code} {message}".lower() for sign in _TOO_LONG)
        return Fault(says, RowProblem("context_length" if too_long else "invalid_request", says))
    return Fault(says, is_limited=status == _LIMITED, after_s=retry_after(headers, now))


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that `Retry-After`, a number or a date, asks for; `retry-after-ms` is finer."""
    millis = _number(headers.get("retry-after-ms"))
    if millis is not None:
        return min(millis / 1000, _MOST_RETRY_AFTER_S)
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is None and text:
        try:
            seconds = (parsedate_to_datetime(text).astimezone(UTC) - now).total_seconds()
        except (ValueError, TypeError):
            return None
    return None if seconds is None else min(max(seconds, 0.0), _MOST_RETRY_AFTER_S)


def backoff_s(tries: int, chance: random.Random) -> float:
    """Exponential, with full jitter, so that rows which failed together do not come together."""
    return chance.uniform(0, min(_FIRST_WAIT_S * 2 ** (tries - 1), _LONGEST_WAIT_S))


class Breaker:
    """Opens after so many failures in a row; one request then tries whether it may close.

    Args:
        open_s: how long it stays open, in seconds.
    """

    def __init__(self, failures: int, open_s: float) -> None:
        self._most, self._open_s = failures, open_s
        self._failures = 0
        self._until: float | None = None

    def wait_s(self, now: float) -> float:
        """0 if a request may go now. The first to be let through an open breaker is its probe."""
        if self._until is None:
            return 0.0
        if now < self._until:
            return self._until - now
        self._until = now + self._open_s
        return 0.0

    def succeeded(self) -> None:
        self._failures, self._until = 0, None

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._failures >= self._most:
            self._until = now + self._open_s


def _told(body: Any) -> tuple[str, str]:
    """(message, code) of an error body in OpenAI's or Anthropic's form, or of any text."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        code = error.get("code") or error.get("type") or ""
        return str(error.get("message") or ""), str(code)
    return str(error or "")[:500], ""


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
