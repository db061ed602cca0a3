"""The route step's host: a policy with what it needs in memory."""

import pyarrow as pa

from pipelines.requests import Request
from pipelines.route_config import Route
from pipelines.routing import Candidate, Decision, Policy, build_policy
from pipelines.schema import patch
from pipelines.waiting import undecided_rows


class Router:
    """Decides the tier of every row that nobody has answered.

    Args:
        learned: the policy of a route that is learned.
    """

    def __init__(self, route: Route, learned: Policy | None = None) -> None:
        self._policy = build_policy(route, learned)

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
        decided = policy.decide(candidates)
        decisions = [
            Decision(c.request.tier, "named by the row") if c.request.tier else d
            for c, d in zip(candidates, decided, strict=True)
        ]
        return patch(
            table,
            at,
            {
                "tier": [d.tier for d in decisions],
                "route_score": [d.score for d in decisions],
                "route_reason": [d.reason for d in decisions],
                "escalations": [0] * len(at),
                "_step": [d.step for d in decisions],
                "_turn": [d.turn for d in decisions],
                "_asked": [d.asked.to_json() if d.asked else None for d in decisions],
            },
        )
