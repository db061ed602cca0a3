"""What became of one online request, as its observers see it: no prompt and no answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Finished(Protocol):
    """A request that has ended, with its whole row.

    `row` has the columns of `pipelines.schema.TRAVELLING`. `ttft_s` is to the client's first
    token.
    """

    @property
    def request_id(self) -> str: ...
    @property
    def tenant(self) -> str | None: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def stream(self) -> bool: ...
    @property
    def row(self) -> Mapping[str, Any]: ...
    @property
    def cost_nusd(self) -> int: ...
    @property
    def baseline_nusd(self) -> int | None: ...
    @property
    def ttft_s(self) -> float | None: ...
    @property
    def e2e_s(self) -> float: ...
    @property
    def cancelled(self) -> bool: ...


@dataclass(frozen=True)
class Served:
    """A finished request in numbers and names. Money is in nano-dollars.

    Attributes:
        status: ok, error or cancelled.
        cost_by_tier: what each tier that worked on it took; sums to `cost_nusd`.
    """

    request_id: str
    tenant: str | None
    endpoint: str
    stream: bool
    status: str
    source: str | None
    similarity: float | None
    tier: str | None
    model: str | None
    finish_reason: str | None
    escalations: int
    fallback_from: str | None
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    cost_nusd: int
    baseline_nusd: int | None
    cost_by_tier: Mapping[str, int]
    ttft_s: float | None
    e2e_s: float
    error_kind: str | None

    @property
    def tpot_s(self) -> float | None:
        """Seconds for each token after the first; None where there is no second."""
        if self.ttft_s is None or self.completion_tokens < 2 or self.source != "generated":
            return None
        return (self.e2e_s - self.ttft_s) / (self.completion_tokens - 1)


@dataclass(frozen=True)
class Refused:
    """A request that was not taken: `reason` is a code such as rate_limit_exceeded."""

    reason: str
    tenant: str | None


def served(seen: Finished) -> Served:
    """What may be told of a request."""
    row = seen.row
    work = row.get("_work") or ()
    by_tier: dict[str, int] = {}
    for done in work:
        by_tier[done["tier"]] = by_tier.get(done["tier"], 0) + (done.get("cost_nusd") or 0)
    return Served(
        request_id=seen.request_id,
        tenant=seen.tenant,
        endpoint=seen.endpoint,
        stream=seen.stream,
        status="cancelled" if seen.cancelled else row.get("status") or "error",
        source=row.get("source"),
        similarity=row.get("similarity"),
        tier=row.get("tier"),
        model=row.get("model"),
        finish_reason=row.get("finish_reason"),
        escalations=row.get("escalations") or 0,
        fallback_from=row.get("fallback_from"),
        prompt_tokens=row.get("prompt_tokens") or 0,
        cached_prompt_tokens=row.get("cached_prompt_tokens") or 0,
        completion_tokens=row.get("completion_tokens") or 0,
        cost_nusd=seen.cost_nusd,
        baseline_nusd=seen.baseline_nusd,
        cost_by_tier=by_tier,
        ttft_s=seen.ttft_s,
        e2e_s=seen.e2e_s,
        error_kind=None if seen.cancelled else row.get("error_kind"),
    )
