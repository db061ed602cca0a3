"""Requests and tokens per minute, granted evenly, so that no minute ever exceeds its limit.

Pure: the caller brings the time, in seconds of any one clock.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

MINUTE_S = 60.0
_AHEAD = 1 / 100
"""Of a minute's limit, what may be granted at once. Refilling is slower by as much: a full
bucket and a minute's refill are together the limit."""
_POLL_S = 1.0
"""Nobody waits longer without asking again: limits are learned and pauses shortened."""
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


class Bucket:
    """Grants up to `limit` a minute. A grant may be larger than what is there; then the next
    waits for all of it."""

    def __init__(self, limit: float, now: float) -> None:
        self._now = now
        self.limit = limit
        self._level = self._size

    @property
    def _size(self) -> float:
        return max(self.limit * _AHEAD, 1.0)

    @property
    def _per_s(self) -> float:
        # A grant of one needs one to be there: with a size of one, grants are evenly spaced.
        return (self.limit - (self._size - 1)) / MINUTE_S

    def set_limit(self, limit: float, now: float) -> None:
        self._refill(now)
        self.limit = limit
        self._level = min(self._level, self._size)

    def wait_s(self, amount: float, now: float) -> float:
        """Until so much can be granted; zero if it can be now."""
        self._refill(now)
        missing = min(amount, self._size) - self._level
        return max(missing / self._per_s, 0.0) if missing > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        self._refill(now)
        self._level -= amount

    def give_back(self, amount: float, now: float) -> None:
        """What a grant did not use; negative for what it used beyond."""
        self.take(-amount, now)
        self._level = min(self._level, self._size)

    def lower(self, remaining: float, now: float) -> None:
        """The provider says that no more is left."""
        self._refill(now)
        self._level = min(self._level, remaining)

    def _refill(self, now: float) -> None:
        passed = max(now - self._now, 0.0)
        self._level = min(self._level + passed * self._per_s, self._size)
        self._now = max(now, self._now)


@dataclass(frozen=True)
class Told:
    """What an answer's headers tell of one kind of limit: per minute, left, seconds to reset."""

    limit: float | None
    remaining: float | None
    reset_s: float | None


@dataclass(frozen=True)
class Lease:
    """The first so many of those who asked may go; the others ask again after `again_s`."""

    granted: int
    again_s: float


class Limits:
    """The rate limits of one account: those configured, those learned, and pauses."""

    def __init__(self, requests: int | None, tokens: int | None) -> None:
        self._configured = {"requests": requests, "tokens": tokens}
        self._buckets: dict[str, Bucket] = {}
        self._paused_until = float("-inf")

    def state(self, requests: int | None, tokens: int | None, now: float) -> None:
        """Somebody who shares the account configures these; of each the least holds."""
        for kind, limit in (("requests", requests), ("tokens", tokens)):
            own = self._configured[kind]
            if limit is None or (own is not None and own <= limit):
                continue
            self._configured[kind] = limit
            bucket = self._bucket(kind, now)
            if bucket is not None and bucket.limit > limit:
                bucket.set_limit(limit, now)

    def lease(self, tokens: Sequence[int], returned: int, now: float) -> Lease:
        """Grant requests, in order, as far as the limits go.

        Args:
            tokens: what each of those who wait will probably use.
            returned: granted before and not used; negative if more was.
        """
        requests, budget = self._bucket("requests", now), self._bucket("tokens", now)
        if budget and returned:
            budget.give_back(returned, now)
        if now < self._paused_until:
            return Lease(0, min(self._paused_until - now, _POLL_S))
        for granted, amount in enumerate(tokens):
            wait = max(
                requests.wait_s(1, now) if requests else 0.0,
                budget.wait_s(amount, now) if budget else 0.0,
            )
            if wait > 0:
                return Lease(granted, min(wait, _POLL_S))
            if requests:
                requests.take(1, now)
            if budget:
                budget.take(amount, now)
        return Lease(len(tokens), 0.0)

    def learn(self, headers: Mapping[str, str], now: float, wall: datetime) -> None:
        """Take over what an answer's headers tell; a configured limit is never raised."""
        for kind, told in told_limits(headers, wall).items():
            self._learn(kind, told, now)

    def pause(self, seconds: float, now: float) -> None:
        """Nobody goes for so long: a provider asked for it."""
        self._paused_until = max(self._paused_until, now + seconds)

    def _learn(self, kind: str, told: Told, now: float) -> None:
        if told.limit:
            own = self._configured[kind]
            limit = min(told.limit, own) if own else told.limit
            bucket = self._bucket(kind, now)
            if bucket is None:
                self._buckets[kind] = Bucket(limit, now)
            elif bucket.limit != limit:
                bucket.set_limit(limit, now)
        if told.remaining is None:
            return
        if told.remaining <= 0 and told.reset_s:
            # What a whole day's limit leaves is not waited for blindly: it may be raised.
            self.pause(min(told.reset_s, MINUTE_S), now)
        elif bucket := self._bucket(kind, now):
            bucket.lower(told.remaining, now)

    def _bucket(self, kind: str, now: float) -> Bucket | None:
        limit = self._configured[kind]
        if kind not in self._buckets and limit is not None:
            self._buckets[kind] = Bucket(limit, now)
        return self._buckets.get(kind)


LIMIT_HEADERS = {
    "requests": (
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ),
    "tokens": (
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-tokens-limit",
        "anthropic-ratelimit-tokens-remaining",
        "anthropic-ratelimit-tokens-reset",
    ),
}
"""OpenAI's names and Anthropic's: the limit, what is left of it, and when it is whole again."""


def told_limits(headers: Mapping[str, str], wall: datetime) -> dict[str, Told]:
    """What headers, named in lower case, tell of requests and tokens; empty if nothing."""
    found = {}
    for kind, names in LIMIT_HEADERS.items():
        limit, remaining, reset = (
            headers.get(ours) or headers.get(theirs)
            for ours, theirs in zip(names[:3], names[3:], strict=True)
        )
        told = Told(_float(limit), _float(remaining), reset_s(reset, wall))
        if told.limit is not None or told.remaining is not None:
            found[kind] = told
    return found


def reset_s(text: str | None, wall: datetime) -> float | None:
    """Seconds, from `6m0s`, `20ms`, a bare number of seconds, or a moment in RFC 3339."""
    if not text:
        return None
    if _DURATION.match(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    if (seconds := _float(text)) is not None:
        return seconds
    try:
        return max((datetime.fromisoformat(text) - wall).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
