"""One account's rate limits for the whole cluster."""

import time
from collections.abc import Sequence

from pipelines.rate_limit import Limits, Timetable


class RateLimits:
    """Tells each request when it may start.

    Args:
        stated: limits of the configuration; what a server says counts only where they are silent.
    """

    def __init__(self, stated: Limits) -> None:
        self._stated = stated
        self._requests = _timetable(stated.requests_per_minute)
        self._tokens = _timetable(stated.tokens_per_minute)
        self._paused_until = 0.0

    def reserve(self, tokens: Sequence[int]) -> list[float]:
        """Seconds that each of these requests, by its tokens, must wait before it starts."""
        now = time.monotonic()
        return [max(self._start(cost, now) - now, 0.0) for cost in tokens]

    def correct(self, tokens: int) -> None:
        """Requests that were reserved took so many tokens less, or more if negative."""
        if self._tokens:
            self._tokens.correct(tokens)

    def learn(self, said: Limits) -> None:
        """A server's own words."""
        if said.requests_per_minute and not self._stated.requests_per_minute:
            self._requests = _changed(self._requests, said.requests_per_minute)
        if said.tokens_per_minute and not self._stated.tokens_per_minute:
            self._tokens = _changed(self._tokens, said.tokens_per_minute)

    def pause(self, seconds: float) -> None:
        """Nobody starts for so long: the server asked for it."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def _start(self, tokens: int, now: float) -> float:
        starts = [self._paused_until]
        if self._requests:
            starts.append(self._requests.start(1, now))
        if self._tokens:
            starts.append(self._tokens.start(tokens, now))
        return max(starts)


def _timetable(per_minute: int | None) -> Timetable | None:
    return Timetable(per_minute) if per_minute else None


def _changed(old: Timetable | None, per_minute: int) -> Timetable:
    return Timetable(per_minute, old.free_at if old else 0.0)
