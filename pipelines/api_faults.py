"""What a failed try at an API means, and when to try again.

Pure: the caller brings the time, the random numbers and what it saw.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any, Literal

from pipelines.api_tier import Breaker as BreakerConfig
from pipelines.errors import ErrorKind

FaultAction = Literal["retry", "throttled", "wait", "late", "row", "outage", "fatal"]
Failure = Literal["timeout", "connection", "malformed"]

_RETRIED_STATUSES = (408, 409, 425)
_CONTEXT_CODES = ("context_length_exceeded", "request_too_large", "string_above_max_length")
_CONTEXT_WORDS = ("maximum context length", "prompt is too long", "longer than the maximum model")
"""vLLM and Anthropic give no code for it, only these words."""
_UNSUPPORTED_CODES = ("unsupported_parameter", "unsupported_value")
_SHOWN = 300
_BASE_S, _MOST_S = 0.5, 60.0


@dataclass(frozen=True)
class Fault:
    """What to do about a try that brought no answer.

    Attributes:
        action: retry; throttled and wait: as often as the deadline allows, because it was
            told to slow down or was not tried at all; late: its deadline came before its turn;
            row: the row is at fault; outage: the service is; fatal: every row would fail alike.
        message: in plain words; may hold the provider's own.
        after_s: what the provider asked to be left alone for.
    """

    action: FaultAction
    message: str
    kind: ErrorKind = "unavailable"
    after_s: float | None = None

    @property
    def is_down(self) -> bool:
        """Whether it speaks against the service, for a breaker."""
        return self.action == "outage" or (self.action == "retry" and self.kind == "unavailable")


def failure_fault(failure: Failure, detail: str) -> Fault:
    """A try without a status: nothing came, or nothing that can be read.

    Args:
        detail: a class's name or what was missing; never the request.
    """
    if failure == "malformed":
        return Fault("retry", f"the endpoint's answer is unusable: {detail}", "malformed")
    words = "did not answer in time" if failure == "timeout" else "could not be reached"
    return Fault("retry", f"the endpoint {words} ({detail})")


def status_fault(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Fault:
    """A try that was answered by an error's status."""
    code, said = _told(body)
    message = f"status {status}: {said}" if said else f"status {status}"
    after = retry_after(headers, now)
    if status in _FATAL or 300 <= status < 400:
        # Providers repeat parts of the key in what they say here.
        return Fault("fatal", _FATAL.get(status, f"status {status}: moved; correct base_url"))
    if status == 402 or "insufficient_quota" in code:
        return Fault("outage", "the account has no quota left; raise it with the provider")
    if status == 429:
        return Fault("throttled", message, after_s=after)
    if status >= 500 or status in _RETRIED_STATUSES:
        return Fault("retry", message, after_s=after)
    return Fault("row", message, _row_kind(status, code, said))


_FATAL = {
    401: "status 401: the key was refused",
    403: "status 403: the key may not do this",
    404: "status 404: no such path or model; check base_url, endpoint and model",
    405: "status 405: no such path; check base_url and endpoint",
}


def _row_kind(status: int, code: tuple[str, ...], said: str) -> ErrorKind:
    if status == 413 or set(code) & set(_CONTEXT_CODES):
        return "context_length"
    if any(words in said.lower() for words in _CONTEXT_WORDS):
        return "context_length"
    return "unsupported" if set(code) & set(_UNSUPPORTED_CODES) else "invalid_request"


def _told(body: bytes) -> tuple[tuple[str, ...], str]:
    """An error body's code and type, and its message, shortened; empty if it has none."""
    try:
        told: Any = json.loads(body)
    except ValueError:
        return (), ""
    error = told.get("error", told) if isinstance(told, dict) else None
    if isinstance(error, str):
        return (), error[:_SHOWN]
    if not isinstance(error, dict):
        return (), ""
    code = tuple(str(error[name]) for name in ("code", "type") if error.get(name))
    return code, str(error.get("message") or "")[:_SHOWN]


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds that a provider asks to wait: from milliseconds, seconds or an HTTP date.

    Args:
        headers: with names in lower case.
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    if text is None:
        return None
    if (seconds := _number(text)) is not None:
        return seconds
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    # A date without a zone is Greenwich's, as all HTTP dates are.
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max((until - now).total_seconds(), 0.0)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def backoff_s(tries: int, rng: Random) -> float:
    """Exponential with full jitter, after so many failed tries (one or more)."""
    return rng.uniform(0, min(_BASE_S * 2 ** min(tries - 1, 16), _MOST_S))


def wait_s(fault: Fault, tries: int, rng: Random) -> float:
    """How long to wait before the next try; a little more than asked, so that not all come at
    the same moment."""
    if fault.after_s is None:
        return backoff_s(tries, rng)
    return fault.after_s + rng.uniform(0, min(0.1 * fault.after_s, 1.0))


_OUTAGE_S = 120.0


@dataclass(frozen=True)
class Leave:
    """What a breaker says to who wants to try.

    Attributes:
        action: go; probe: go, and what comes of it decides; wait: ask again later; outage: the
            service has been down for too long.
    """

    action: Literal["go", "probe", "wait", "outage"]
    wait_s: float = 0.0


class Breaker:
    """Closed, everybody goes. After failures in a row it opens: nobody goes. Half-open, one
    request goes to see.

    Times are seconds of any one clock.

    Args:
        has_fallback: whether somebody else answers rows that fail here.
    """

    def __init__(self, config: BreakerConfig, has_fallback: bool = False) -> None:
        self._config = config
        patience_s = 0.0 if has_fallback else _OUTAGE_S
        self._outage_s = patience_s if config.outage_s is None else config.outage_s
        self._failures = 0
        self._opened_at: float | None = None
        self._down_since = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._opened_at is not None

    def is_outage(self, now: float) -> bool:
        """Whether the service has been down for too long to wait for."""
        return self.is_open and now - self._down_since >= self._outage_s

    def ask(self, now: float) -> Leave:
        if self._opened_at is None:
            return Leave("go")
        rest = self._opened_at + self._config.open_s - now
        if rest <= 0 and not self._probing:
            self._probing = True
            return Leave("probe")
        if self.is_outage(now):
            return Leave("outage")
        return Leave("wait", min(max(rest, 0.05), 1.0))

    def succeeded(self) -> None:
        """The service answered, be it with a refusal."""
        self._failures = 0
        self._opened_at = None
        self._probing = False

    def failed(self, now: float, probe: bool = False) -> None:
        """A try found the service down; only a probe's failure counts while it is open."""
        self._failures += 1
        if probe:
            self._probing = False
        if probe and self.is_open:
            self._opened_at = now
        elif self._opened_at is None and self._failures >= self._config.failures:
            self._opened_at = self._down_since = now

    def abandoned(self) -> None:
        """A probe ended without telling anything, as where its row was called back."""
        self._probing = False
