"""One run's running totals: progress for people, and the budget that nothing may pass."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from pipelines.cost import time_cost
from pipelines.ledger import Replica
from pipelines.prices import HourRate, PriceList

_SILENT_S = 30.0

Grant = Literal["granted", "wait", "closed"]


@dataclass(frozen=True)
class Snapshot:
    """Totals so far.

    `spent_nusd` includes the replicas' time up to their last report; `first_commit_at` is in
    seconds since the epoch, as the meter's machine tells them; `failure` is what ended the run.
    """

    counts: dict[str, int]
    tokens: int
    spent_nusd: int
    replicas: dict[str, Replica]
    closed: bool
    warnings: list[str]
    first_commit_at: float | None
    failure: str | None = None


class RunMeter:
    """Counts what stages report; grants spending while the budget lasts.

    A grant covers a row's worst case, so that the budget holds whatever the answers turn out
    to be; when the row is done its true cost replaces the grant.
    """

    def __init__(self, prices: PriceList, budget_nusd: int | None, spent_before: int) -> None:
        self._rates = prices.tiers
        self._budget = budget_nusd
        self._spent_on_rows = spent_before
        self._reserved: Counter[str] = Counter()
        self._seen: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._replicas: dict[str, Replica] = {}
        self._closed = False
        self._warnings: list[str] = []
        self._first_commit_at: float | None = None
        self._failure: str | None = None

    def reserve(self, name: str, nusd: int) -> Grant:
        """A replica asks to spend up to so much. Once closed it stays closed."""
        if self._budget is None:
            return "granted"
        self._seen[name] = time.monotonic()
        reserved = self._reserved_by_the_living()
        if not self._closed and self._spent() + reserved + nusd <= self._budget:
            self._reserved[name] += nusd
            return "granted"
        if reserved and not self._closed:
            return "wait"
        self._closed = True
        return "closed"

    def settle(self, name: str, reserved_nusd: int, spent_nusd: int) -> None:
        """Replace a replica's grants by what was truly spent."""
        self._reserved[name] -= reserved_nusd
        self._spent_on_rows += spent_nusd

    def report_replica(self, name: str, replica: Replica) -> None:
        self._replicas[name] = replica
        self._seen[name] = time.monotonic()

    def _reserved_by_the_living(self) -> int:
        """Grants of a replica that reports no more will never be settled; nobody waits for them."""
        oldest = time.monotonic() - _SILENT_S
        return sum(n for name, n in self._reserved.items() if self._seen[name] >= oldest)

    def count(self, counts: dict[str, int]) -> None:
        if self._first_commit_at is None:
            self._first_commit_at = time.time()
        self._counts.update(counts)

    def warn(self, message: str) -> None:
        """Something that did not stop the run but that its owner should know; said once."""
        if message not in self._warnings:
            self._warnings.append(message)

    def fail(self, message: str) -> None:
        """Why the run cannot go on, in the words of who found out; the first counts."""
        self._failure = self._failure or message

    def snapshot(self) -> Snapshot:
        tokens = sum(replica.tokens for replica in self._replicas.values())
        return Snapshot(
            dict(self._counts),
            tokens,
            self._spent(),
            dict(self._replicas),
            self._closed,
            list(self._warnings),
            self._first_commit_at,
            self._failure,
        )

    def _spent(self) -> int:
        time_spent = 0
        for replica in self._replicas.values():
            rate = self._rates[replica.tier]
            if isinstance(rate, HourRate):
                time_spent += time_cost(replica.alive_ns, rate)
        return self._spent_on_rows + time_spent
