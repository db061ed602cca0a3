"""The actors that keep the rate limits of API accounts, one for each in a run."""

from typing import Any

from actors.rate_limits import RateLimits
from jobs.placement import beside_driver
from pipelines.api_tier import API
from pipelines.tier import Tier


class RateLimitActors:
    """Starts an actor for an account with the first tier that uses it."""

    def __init__(self) -> None:
        self._actors: dict[tuple[str, str], Any] = {}

    def of(self, tier: Tier) -> Any | None:
        """The actor that a tier's engines ask; None if they call no API.

        Tiers that share an account should state the same limits: the first one's hold.
        """
        if not isinstance(tier.engine, API):
            return None
        api = tier.engine
        if api.account not in self._actors:
            actor = beside_driver(RateLimits)
            limits = (api.requests_per_minute, api.tokens_per_minute)
            self._actors[api.account] = actor.remote(*limits)
        return self._actors[api.account]
