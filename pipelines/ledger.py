"""The bill: what every row and every overhead cost, reconciled to the nano-dollar."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa

from pipelines.cost import time_cost
from pipelines.errors import UsageProblem
from pipelines.prices import HourRate, TokenRate
from pipelines.schema import BILL


@dataclass
class Replica:
    """The life of one engine replica in one start of a run; times in nanoseconds.

    `busy_ns` is with at least one request in the engine, `load_ns` is loading the model, and
    what is left of `alive_ns` is idle. `active_ns` is from the first request's admission to
    the last answer. `token_nusd` is what its answers cost by the token; `batch_nusd` is instead
    what the provider's batches that it has read cost, whole, by their id. `speculation` counts
    what its engine drafted; empty if it does not speculate. The rest is its engine's `Occupancy`.
    """

    tier: str
    alive_ns: int = 0
    load_ns: int = 0
    busy_ns: int = 0
    active_ns: int = 0
    tokens: int = 0
    token_nusd: int = 0
    batch_nusd: dict[str, int] = field(default_factory=dict)
    running_ns: int = 0
    waiting_ns: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    deaths: int = 0
    model: str = ""
    sizes: dict[str, int] = field(default_factory=dict)
    plan: str = ""
    speculation: dict[str, Any] = field(default_factory=dict)

    @property
    def idle_ns(self) -> int:
        return max(self.alive_ns - self.load_ns - self.busy_ns, 0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Committed:
    """What the committed rows of one tier and start took of its replicas.

    `requests` counts what was asked of them. `cost_nusd` is all of it, `row_nusd` what the rows
    themselves are billed: without checks of
    them in the shadow, and attempts that a retry replaced.
    """

    engine_ns: int = 0
    cost_nusd: int = 0
    row_nusd: int = 0
    requests: int = 0


def overhead_lines(
    attempts: Mapping[str, Iterable[Replica]],
    committed: Mapping[tuple[str, str], Committed],
    rates: Mapping[str, TokenRate | HourRate],
) -> list[dict[str, Any]]:
    """The lines beside the rows: load, idle, and retry.

    Retry is what no committed row pays, busy time or tokens: work lost to a kill.
    For a tier that pays by the hour the rows and these lines together make up exactly what
    the replicas' time costs; rounding ends in the idle line.

    Args:
        attempts: start of the run -> its replicas.
        committed: (start, tier) -> what its committed rows took.
    """
    lines = []
    for attempt, replicas in attempts.items():
        by_tier: dict[str, list[Replica]] = {}
        for replica in replicas:
            by_tier.setdefault(replica.tier, []).append(replica)
        for tier, group in by_tier.items():
            if tier not in rates:
                raise UsageProblem(
                    f"tiers: an earlier start of this run paid for tier {tier!r}; keep it in the "
                    "configuration, so that its bill can be told"
                )
            paid = committed.get((attempt, tier), Committed())
            lines += _tier_lines(attempt, tier, group, paid, rates[tier])
    return lines


def batch_lines(
    attempts: Mapping[str, Sequence[Replica]], committed: Mapping[tuple[str, str], Committed]
) -> list[dict[str, Any]]:
    """What no committed row pays of a provider's batches.

    A batch is charged once, however many starts read it: what one of them lost in a kill, the
    next one finds again. So this is known only when there is no next one.
    """
    charged: dict[str, dict[str, int]] = {}
    paid: Counter[str] = Counter()
    for replica in chain.from_iterable(attempts.values()):
        charged.setdefault(replica.tier, {}).update(replica.batch_nusd)
    for (attempt, tier), done in committed.items():
        # A start that was killed may not have told of the batches that its rows are from.
        told = [replica for replica in attempts.get(attempt, ()) if replica.tier == tier]
        if not any(replica.token_nusd for replica in told):
            paid[tier] += done.cost_nusd
    lines = []
    for tier, batches in charged.items():
        if batches and sum(batches.values()) > paid[tier]:
            lines.append(overhead_line("retry", tier=tier, cost=sum(batches.values()) - paid[tier]))
    return lines


def _tier_lines(
    attempt: str,
    tier: str,
    replicas: list[Replica],
    paid: Committed,
    rate: TokenRate | HourRate,
) -> list[dict[str, Any]]:
    load = sum(r.load_ns for r in replicas)
    idle = sum(r.idle_ns for r in replicas)
    lost = max(sum(r.busy_ns for r in replicas) - paid.engine_ns, 0)
    spent = sum(r.token_nusd for r in replicas)
    costs = {"load": 0, "retry": max(spent - paid.cost_nusd, 0), "idle": 0}
    if isinstance(rate, HourRate):
        costs["load"], costs["retry"] = time_cost(load, rate), time_cost(lost, rate)
        whole = time_cost(load + idle + lost + paid.engine_ns, rate)
        costs["idle"] = whole - costs["load"] - costs["retry"] - paid.cost_nusd
    times = {"load": load, "retry": lost, "idle": idle}
    return [
        overhead_line(kind, attempt, tier, times[kind], costs[kind])
        for kind in costs
        if times[kind] or costs[kind]
    ]


def overhead_line(
    kind: str, attempt: str | None = None, tier: str | None = None, ns: int = 0, cost: int = 0
) -> dict[str, Any]:
    """A line of the bill that no row pays."""
    return {
        "kind": kind,
        "row_id": None,
        "tier": tier,
        "seconds": ns / 1e9,
        "tokens": 0,
        "cost_nusd": cost,
        "attempt_id": attempt,
        "engine_ns": ns,
    }


def bill_table(lines: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(lines, schema=BILL)
