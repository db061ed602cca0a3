"""A rate limit as a timetable: each request is told when it may start.

The generic cell rate algorithm: a request of a cost moves the timetable on by the time in which
the limit grants that cost. Nobody polls, and one number is all the state.
"""

from collections.abc import Mapping
from dataclasses import dataclass

BURST_S = 1.0
"""How far requests may run ahead: in any minute at most 1/60 above the limit."""
_MINUTE_S = 60.0


@dataclass
class Timetable:
    """One limit, in units a minute; times are seconds on one clock.

    Attributes:
        free_at: when all that was granted so far will have been paid for by time.
    """

    per_minute: float
    free_at: float = 0.0

    def start(self, cost: float, now: float) -> float:
        """When a request of this cost may start; it counts as started then."""
        begins = max(now, self.free_at - BURST_S)
        self.free_at = max(self.free_at, now) + cost * _MINUTE_S / self.per_minute
        return begins

    def correct(self, cost: float) -> None:
        """A request cost so much less than it was granted for, or, if negative, more."""
        self.free_at -= cost * _MINUTE_S / self.per_minute


@dataclass(frozen=True)
class Limits:
    """What a server says of its limits; None where it says nothing."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __bool__(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


def limits_in(headers: Mapping[str, str]) -> Limits:
    """The limits in an answer's headers, in OpenAI's or Anthropic's names, which are lower-case."""
    return Limits(
        _first(headers, "x-ratelimit-limit-requests", "anthropic-ratelimit-requests-limit"),
        _first(headers, "x-ratelimit-limit-tokens", "anthropic-ratelimit-tokens-limit"),
    )


def _first(headers: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        text = headers.get(name, "")
        if text.isdecimal() and int(text) > 0:
            return int(text)
    return None
