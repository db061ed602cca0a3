"""At most so much in any minute, for callers who are refused rather than made to wait.

`rate_limit.Bucket` spaces grants evenly, which suits a queue in front of a provider. Who is
refused at once needs the whole minute's limit, however unevenly it is used.

Pure: the caller brings the time, in seconds of any one clock.
"""

from collections import deque
from dataclasses import dataclass

from pipelines.rate_limit import MINUTE_S


@dataclass
class _Use:
    at: float
    amount: int
    settled: bool = False


class RateWindow:
    """What was taken in the last minute."""

    def __init__(self) -> None:
        self._uses: deque[_Use] = deque()
        self._sum = 0

    def wait_s(self, amount: int, limit: int, now: float) -> float | None:
        """Until so much fits; zero if it does now, None if it never will."""
        if amount > limit:
            return None
        self._forget(now)
        excess = self._sum + amount - limit
        for use in self._uses:
            if excess <= 0:
                break
            excess -= use.amount
            if excess <= 0:
                return use.at + MINUTE_S - now
        return 0.0

    def take(self, amount: int, now: float) -> None:
        self._uses.append(_Use(now, amount))
        self._sum += amount

    def settle(self, taken: int, used: int, now: float) -> None:
        """The oldest open use of `taken` turned out to be `used`."""
        self._forget(now)
        for use in self._uses:
            if not use.settled and use.amount == taken:
                use.amount, use.settled = used, True
                self._sum += used - taken
                return

    def _forget(self, now: float) -> None:
        while self._uses and self._uses[0].at + MINUTE_S <= now:
            self._sum -= self._uses.popleft().amount
