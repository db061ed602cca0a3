"""Rates and budgets of tenants, for all ingress replicas of an endpoint."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from actors.online_request import Reservation
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
    reserved: dict[str, tuple[float, int]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)

    def reserved_nusd(self, now: float) -> int:
        # The oldest come first.
        while (
            self.reserved and (oldest := next(iter(self.reserved.items())))[1][0] <= now - _FORGET_S
        ):
            del self.reserved[oldest[0]]
        return sum(nusd for _, nusd in self.reserved.values()) + sum(self.held.values())


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

    async def admit(self, tenant: str | None, most: Reservation) -> Refusal | None:
        """As `Gate.admit`."""
        if tenant is None:
            return None
        limits, account, now = self._limits(tenant), self._accounts[tenant], self._clock()
        refusal = (
            self._over_budget(tenant, limits, account.reserved_nusd(now) + most.nusd)
            or _over_rate("requests", account.requests, 1, limits.requests_per_minute, now)
            or _over_rate("tokens", account.tokens, most.tokens, limits.tokens_per_minute, now)
        )
        if refusal is None:
            account.requests.take(1, now)
            account.tokens.take(most.tokens, now)
            account.reserved[most.name] = now, most.nusd
        return refusal

    async def settle(
        self, tenant: str | None, most: Reservation, tokens: int, cost_nusd: int
    ) -> None:
        """As `Gate.settle`."""
        if tenant is None:
            return
        account, day = self._accounts[tenant], self._wall().date()
        if not self._spending.add(most.name, tenant, day, tokens, cost_nusd):
            return
        # One that was reserved before this gate began is not known to it.
        if account.reserved.pop(most.name, None) is not None:
            account.tokens.settle(most.tokens, tokens, self._clock())

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
