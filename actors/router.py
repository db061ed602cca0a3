"""The route step's host: a policy with what it needs in memory."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.requests import Request
from pipelines.routing import Candidate, Decision, Policy
from pipelines.schema import patch
from pipelines.waiting import undecided_rows

_PLACE = (
    "tier", "route_score", "route_reason", "escalations", "_step", "_turn", "_asked",
)  # fmt: skip
"""What routing says of a row."""


class Router:
    """Decides the tier of every row that nobody has answered.

    Args:
        policy: of the run.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def route(self, table: pa.Table, instead: Policy | None = None) -> pa.Table:
        """Args:
        instead: a policy to go by for this table, in place of the run's own.
        """
        policy = instead or self._policy
        at = undecided_rows(table)
        if not at:
            return table
        names = [n for n in policy.columns if n in table.column_names]
        rows = table.select(["_request", *names]).take(at).to_pylist()
        candidates = [Candidate(Request.from_json(row["_request"]), row) for row in rows]
        places = self.places(candidates, instead)
        return patch(table, at, {name: [place[name] for place in places] for name in _PLACE})

    def places(
        self, candidates: Sequence[Candidate], instead: Policy | None = None
    ) -> list[dict[str, Any]]:
        """Where each goes: values of the columns `_PLACE`."""
        decided = (instead or self._policy).decide(candidates)
        return [
            _place(Decision(c.request.tier, "named by the row") if c.request.tier else d)
            for c, d in zip(candidates, decided, strict=True)
        ]


def _place(decision: Decision) -> dict[str, Any]:
    return {
        "tier": decision.tier,
        "route_score": decision.score,
        "route_reason": decision.reason,
        "escalations": 0,
        "_step": decision.step,
        "_turn": decision.turn,
        "_asked": decision.asked.to_json() if decision.asked else None,
    }
