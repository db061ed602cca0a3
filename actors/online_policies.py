"""What decides about rows online: the same that a run of the configuration would go by."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from actors.referee import Referee
from actors.router import Router
from pipelines.cascade import CUT_SHORT
from pipelines.intake import Dialect
from pipelines.prices import PriceList
from pipelines.pricing import Price, price_row
from pipelines.requests import Request
from pipelines.worst_case import worst_nusd, worst_tokens


@dataclass(frozen=True)
class Policies:
    """
    Attributes:
        policy: `policy_digest`.
        tenant: the column that a request's tenant stands in.
        most_tokens: what a request that states no limit gets at most.
    """

    dialect: Dialect
    policy: bytes
    prices: PriceList
    router: Router
    referees: Mapping[str, Referee]
    tenant: str
    most_tokens: int

    def price(self, row: Mapping[str, Any]) -> Price:
        return price_row(row, self.prices)

    def worst(self, request: Request, tiers: Collection[str]) -> tuple[int, int]:
        """Tokens and nano-dollars that a request cannot exceed, whichever of the tiers work on it.

        A tier that it names itself is the only one.
        """
        most, defaults = self.most_tokens, self.dialect.defaults
        names = [request.tier] if request.tier else tiers
        rates = [self.prices.tiers[name] for name in names]
        tokens = sum(worst_tokens(request, defaults, most))
        return tokens, sum(worst_nusd(request, defaults, rate, most) for rate in rates)

    def bounded(self, request: Request) -> Request:
        """Nobody gets more than the endpoint gives to who asks for no limit."""
        fields = {**self.dialect.defaults, **request.sampling}
        if fields.get("max_tokens") is not None or "encoding_format" in fields:
            return request
        return replace(request, sampling={**request.sampling, "max_tokens": self.most_tokens})

    def cut_here(self, request: Request, finish_reason: str | None) -> bool:
        """Whether an answer ends at the endpoint's own limit, which the request's key does not
        tell."""
        return finish_reason == CUT_SHORT and self.bounded(request) is not request
