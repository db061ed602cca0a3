"""One account's rate limits, for all engines of a cluster, and an engine's place in the queue."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from pipelines.api_tier import API
from pipelines.rate_limit import Lease, Limits, told_limits

_AT_ONCE = 512
"""Waiting requests that one call asks for."""
_LEARN_EVERY_S = 1.0


class RateLimits:
    """`Limits` with a clock. One for each account, wherever its engines are."""

    def __init__(
        self, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> None:
        self._limits = Limits(requests_per_minute, tokens_per_minute)

    def state(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._limits.state(requests_per_minute, tokens_per_minute, time.monotonic())

    def lease(self, tokens: Sequence[int], returned: int) -> Lease:
        return self._limits.lease(tokens, returned, time.monotonic())

    def learn(self, headers: Mapping[str, str]) -> None:
        self._limits.learn(headers, time.monotonic(), datetime.now(UTC))

    def pause(self, seconds: float) -> None:
        self._limits.pause(seconds, time.monotonic())


class RateLimitCalls(Protocol):
    """A `RateLimits` as an engine sees it."""

    async def lease(self, tokens: Sequence[int], returned: int) -> Lease: ...

    def learn(self, headers: Mapping[str, str]) -> None: ...

    def pause(self, seconds: float) -> None: ...


class LocalLimits:
    """A `RateLimits` of this process, for an engine that is alone with its account."""

    def __init__(self, config: API) -> None:
        self._limits = RateLimits(config.requests_per_minute, config.tokens_per_minute)

    async def lease(self, tokens: Sequence[int], returned: int) -> Lease:
        return self._limits.lease(tokens, returned)

    def learn(self, headers: Mapping[str, str]) -> None:
        self._limits.learn(headers)

    def pause(self, seconds: float) -> None:
        self._limits.pause(seconds)


class Queue:
    """Where an engine's requests wait for the rate limit, first come first served.

    One call asks for all that wait; while it is under way others come. As long as no limit is
    configured and none was learned it lets everybody through and calls nobody. Lives on one
    event loop.
    """

    def __init__(self, limits: RateLimitCalls, is_limited: bool) -> None:
        self._limits = limits
        self._is_limited = is_limited
        self._paused_until = 0.0
        self._learned_at = float("-inf")
        self._returned = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._asking: asyncio.Task[None] | None = None

    async def enter(self, tokens: int, within_s: float) -> bool:
        """Wait until a request that will probably use so many tokens may go; whether its turn came
        in time."""
        if not self._is_limited and time.monotonic() >= self._paused_until:
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, turn))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        try:
            await asyncio.wait_for(turn, within_s)
        except TimeoutError:
            return False
        return True

    def used(self, granted: int, tokens: int) -> None:
        """A request used other than it was granted; the next call tells."""
        if self._is_limited:
            self._returned += granted - tokens

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take over limits that an answer tells: headers of `LIMIT_HEADERS`, or none."""
        now = time.monotonic()
        told = told_limits(headers, datetime.now(UTC)) if headers else {}
        is_left = all(t.remaining is None or t.remaining > 0 for t in told.values())
        if not told or (is_left and now - self._learned_at < _LEARN_EVERY_S):
            return
        self._learned_at = now
        self._is_limited = self._is_limited or any(t.limit for t in told.values())
        if not is_left:
            self._paused_until = now + _LEARN_EVERY_S
        self._limits.learn(headers)

    def pause(self, seconds: float) -> None:
        """The provider asked to be left alone: by all engines of the account."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        self._limits.pause(seconds)

    async def _ask(self) -> None:
        while self._waiting:
            # Who has gone since wants no grant.
            self._waiting = deque(one for one in self._waiting if not one[1].done())
            some = [tokens for tokens, _ in list(self._waiting)[:_AT_ONCE]]
            returned, self._returned = self._returned, 0
            lease = await self._limits.lease(some, returned)
            for _ in range(lease.granted):
                _, turn = self._waiting.popleft()
                # One that went meanwhile takes its grant with it; the limit is kept.
                if not turn.done():
                    turn.set_result(None)
            if lease.again_s:
                await asyncio.sleep(lease.again_s)

    def _asked(self, asking: asyncio.Task[None]) -> None:
        """Nobody must wait for a turn that will never come, because asking for it failed."""
        error = None if asking.cancelled() else asking.exception()
        if asking is not self._asking or not (error or asking.cancelled()):
            return
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error) if error else turn.cancel()
