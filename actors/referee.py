"""What follows an engine's turn: the row is answered, or another tier is to work on it."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.cascade import ANSWER, CUT_SHORT, Done, Given, Ladder, Next
from pipelines.errors import ErrorKind
from pipelines.requests import Request
from pipelines.schema import BEYOND_TEXT, patch, rows_at
from pipelines.tier import Tier

_ANSWER = (
    "status", "source", "response", "finish_reason", "model", "prompt_tokens",
    "cached_prompt_tokens", "completion_tokens", "attempts", "ttft_s", "e2e_s", "draft_tokens",
    "accepted_tokens", "error_kind", "error", *BEYOND_TEXT.names,
)  # fmt: skip
"""What an engine leaves on a row."""
_PLACE = (
    "tier", "route_score", "route_reason", "escalations", "fallback_from", "route_audit", "_step",
    "_turn", "_asked", "_parked",
)  # fmt: skip

_OUT: ErrorKind = "unavailable"

Row = dict[str, Any]


class Referee:
    """Rules on the rows that one tier has just worked on.

    Args:
        ladder: of the run's route; None where the first answer is the last.
    """

    def __init__(self, tier: Tier, ladder: Ladder | None) -> None:
        self._tier, self._ladder = tier, ladder

    def rule(self, table: pa.Table, at: Sequence[int]) -> pa.Table:
        """Send rows on, or let them keep what they have.

        Args:
            at: positions of the rows that the tier was given, ascending.
        """
        if self._ladder is None:
            if self._tier.fallback is None:
                return table
            # Nothing but an outage concerns such a tier; most blocks have none.
            kinds = rows_at(table.select(["error_kind"]), at)["error_kind"].to_pylist()
            at = [place for place, kind in zip(at, kinds, strict=True) if kind == _OUT]
        label = self._ladder.label if self._ladder else None
        rows = rows_at(table.select(["row_id", "_request", *_ANSWER, *_PLACE]), at).to_pylist()
        labels = [None] * len(rows)
        if label is not None and label in table.column_names:
            labels = rows_at(table.select([label]), at)[label].to_pylist()
        changed = {
            place: new
            for place, row, right in zip(at, rows, labels, strict=True)
            if (new := self.ruling(row, right))
        }
        names = [*_ANSWER, *_PLACE]
        values = {name: [row[name] for row in changed.values()] for name in names}
        return patch(table, list(changed), values)

    def may_stream(self, row: Row) -> bool:
        """Whether the tier's answer is this row's, whatever it says."""
        if self._ladder is None or row["_step"] is None:
            return True
        return self._ladder.is_last(row["_step"], row["_turn"])

    def ruling(self, row: Row, label: Any = None) -> Row | None:
        """The row with all that changes; None if nothing does, and its answer is its last."""
        if row["status"] == "pending":
            return None
        if row["error_kind"] == _OUT and self._tier.fallback is not None:
            return self._elsewhere(row, self._tier.fallback)
        if self._ladder is None or row["_step"] is None:
            return None
        outcome = self._ladder.after(_given(row, label))
        return _done(row, outcome) if isinstance(outcome, Done) else _next(row, outcome)

    def _elsewhere(self, row: Row, tier: str) -> Row:
        """The row on the tier that stands in for one that is out."""
        step = row["_step"]
        if self._ladder is not None and step is not None and row["_turn"] == ANSWER:
            step = self._ladder.step_of(tier, step)
        changed = {"tier": tier, "fallback_from": row["tier"], "_step": step}
        return {**row, **_NO_ANSWER, **changed}


_NO_ANSWER: Row = dict.fromkeys(_ANSWER)


def _given(row: Row, label: Any) -> Given:
    parked = json.loads(row["_parked"]) if row["_parked"] else None
    return Given(
        step=row["_step"],
        turn=row["_turn"],
        request=Request.from_json(row["_request"]),
        response=row["response"] if row["status"] == "ok" else None,
        complete=row["finish_reason"] != CUT_SHORT,
        token_logprobs=(parked or row)["token_logprobs"],
        parked=parked["response"] if parked else None,
        row_id=row["row_id"],
        label=None if label is None else str(label),
        tier=(parked or row)["tier"],
    )


def _next(row: Row, following: Next) -> Row:
    parked = row["_parked"] if following.parks else None
    if following.parks and parked is None:
        parked = json.dumps({name: row[name] for name in (*_ANSWER, "tier")})
    return {
        **row,
        **_NO_ANSWER,
        "tier": following.tier,
        "route_score": row["route_score"] if following.score is None else following.score,
        "route_reason": following.reason or row["route_reason"],
        "escalations": row["escalations"] + following.escalates,
        "_step": following.step,
        "_turn": following.turn,
        "_asked": following.asked.to_json() if following.asked else None,
        "_parked": parked,
    }


def _done(row: Row, done: Done) -> Row:
    answer = json.loads(row["_parked"]) if done.takes_parked else {}
    settled = {"route_audit": done.audit, "_turn": ANSWER, "_asked": None, "_parked": None}
    row = {**row, **answer, **settled}
    if not Request.from_json(row["_request"]).sampling.get("logprobs"):
        # They were asked for to judge the answer, not by the row.
        row["token_logprobs"] = None
        row["choices"] = None if row["choices"] is None else _without_logprobs(row["choices"])
    if done.reason:
        row["route_reason"] = done.reason
    if done.score is not None:
        row["route_score"] = done.score
    return row


def _without_logprobs(choices: str) -> str:
    return json.dumps([{**choice, "logprobs": None} for choice in json.loads(choices)])
