"""Rates and budgets of tenants, for all ingress replicas of an endpoint."""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from actors.spending import Spending
from pipelines.prices import NUSD
from pipelines.rate_window import RateWindow
from pipelines.refusal import Refusal
from pipelines.tenants import TenantLimits

_FORGET_S = 3600.0
"""A reservation that nobody settled, because its replica died, is free again after so long."""


@dataclass
class _Account:
    requests: RateWindow = field(default_factory=RateWindow)
    tokens: RateWindow = field(default_factory=RateWindow)
    reserved: deque[tuple[float, int]] = field(default_factory=deque)
    held: dict[str, int] = field(default_factory=dict)

    def reserved_nusd(self, now: float) -> int:
        while self.reserved and self.reserved[0][0] + _FORGET_S <= now:
            self.reserved.popleft()
        return sum(nusd for _, nusd in self.reserved) + sum(self.held.values())

    def release(self, nusd: int) -> None:
        for entry in self.reserved:
            if entry[1] == nusd:
                self.reserved.remove(entry)
                return


class TenantGate:
    """Lets a request in if its tenant's rates and budgets allow its worst case.

    One for an endpoint, wherever its replicas are: a limit is the tenant's, not a replica's.
    Rates begin anew with it; what was spent does not.
    """

    def __init__(
        self,
        limits: Callable[[str], TenantLimits],
        spending: Spending,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Args:
            limits: of a tenant, as they are now.
            clock: seconds.
        """
        self._limits, self._spending = limits, spending
        self._clock, self._wall = clock, wall
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)

    async def admit(self, tenant: str | None, tokens: int, worst_nusd: int) -> Refusal | None:
        """Reserve what a request may use at most; a refused one reserves nothing.

        Args:
            tokens: of its prompt and, at most, of its completion.
        """
        if tenant is None:
            return None
        limits, account, now = self._limits(tenant), self._accounts[tenant], self._clock()
        refusal = (
            self._over_budget(tenant, limits, account.reserved_nusd(now) + worst_nusd)
            or _over_rate("requests", account.requests, 1, limits.requests_per_minute, now)
            or _over_rate("tokens", account.tokens, tokens, limits.tokens_per_minute, now)
        )
        if refusal is None:
            account.requests.take(1, now)
            account.tokens.take(tokens, now)
            account.reserved.append((now, worst_nusd))
        return refusal

    async def settle(
        self,
        tenant: str | None,
        tokens: int,
        cost_nusd: int,
        reserved_nusd: int,
        reserved_tokens: int,
    ) -> None:
        """Replace a reservation by what was used."""
        if tenant is None:
            return
        account = self._accounts[tenant]
        account.release(reserved_nusd)
        account.tokens.settle(reserved_tokens, tokens, self._clock())
        self._spending.add(tenant, self._wall().date(), tokens, cost_nusd)

    def hold(self, tenant: str, nusd: int, name: str) -> None:
        """Keep so much of the budgets for a batch, until it is charged. Not kept over restarts."""
        self._accounts[tenant].held[name] = nusd

    def charge(self, tenant: str, tokens: int, cost_nusd: int, once: str) -> None:
        """Put a batch's cost on a tenant's account, and end its hold.

        Args:
            once: names the batch; a second charge of this name is none.
        """
        self._accounts[tenant].held.pop(once, None)
        self._spending.add_once(once, tenant, self._wall().date(), tokens, cost_nusd)

    def left_nusd(self, tenant: str) -> int | None:
        """What the tenant's budgets leave now; None without a budget."""
        reserved = self._accounts[tenant].reserved_nusd(self._clock())
        left = [budget - spent for _, budget, spent in self._budgets(tenant, self._limits(tenant))]
        return max(min(left) - reserved, 0) if left else None

    def _over_budget(self, tenant: str, limits: TenantLimits, more_nusd: int) -> Refusal | None:
        for period, budget, spent in self._budgets(tenant, limits):
            if spent + more_nusd > budget:
                message = (
                    f"tenant {tenant} has spent ${spent / NUSD:.6f} of the {period}'s "
                    f"${budget / NUSD:g}, and this request's worst case does not fit any more"
                )
                return Refusal(429, message, "insufficient_quota", "insufficient_quota")
        return None

    def _budgets(self, tenant: str, limits: TenantLimits) -> list[tuple[str, int, int]]:
        """Of each budget: its period, how much it is, and what is spent, in nano-dollars."""
        today = self._wall().astimezone(UTC).date()
        periods = [
            ("day", limits.usd_per_day, today),
            ("month", limits.usd_per_month, today.replace(day=1)),
        ]
        # Settled after midnight counts for the new day, so no line lies ahead.
        ahead = today + timedelta(days=1)
        return [
            (name, round(usd * NUSD), self._spending.spent_nusd(tenant, first, ahead))
            for name, usd, first in periods
            if usd is not None
        ]


def _over_rate(
    what: str, window: RateWindow, amount: int, limit: int | None, now: float
) -> Refusal | None:
    if limit is None:
        return None
    wait = window.wait_s(amount, limit, now)
    if wait == 0:
        return None
    asked = f"{amount:,} {what} asked for, {limit:,} a minute allowed"
    if wait is None:
        message = f"request too large: {asked}; lower max_tokens or the prompt"
        return Refusal(429, message, "rate_limit_error", "rate_limit_exceeded")
    message = f"rate limit reached: {asked}; try again in {wait:.1f} s"
    return Refusal(429, message, "rate_limit_error", "rate_limit_exceeded", wait)
