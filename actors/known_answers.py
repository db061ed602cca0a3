"""Answers that a calibration has paid for: a row that asks the same again gets them for nothing."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.requests import Request
from pipelines.route_plan import known_key
from pipelines.schema import patch, rows_at
from pipelines.waiting import undecided_rows

SERVED = (
    "response", "finish_reason", "tier", "model", "prompt_tokens", "completion_tokens",
)  # fmt: skip
"""What is kept of an answer, beside its key."""


class KnownAnswers:
    """Args:
    answers: `known_key` and the columns of `SERVED`.
    keyed_by: the columns that keep equal requests apart.
    """

    def __init__(self, answers: pa.Table, keyed_by: Sequence[str]) -> None:
        self._by_key = {row["known_key"]: row for row in answers.to_pylist()}
        self._keyed_by = keyed_by

    def recall(self, table: pa.Table) -> pa.Table:
        """Answer deterministic rows that were in the sample; they name no tier themselves."""
        shareable = table["_shareable"].to_pylist()
        at = [row for row in undecided_rows(table) if shareable[row]]
        names = [name for name in self._keyed_by if name in table.column_names]
        rows = rows_at(table.select(["_request", *names]), at).to_pylist()
        found = {
            place: known
            for place, row in zip(at, rows, strict=True)
            if (known := self._known(row)) is not None
        }
        columns: dict[str, list[Any]] = {
            name: [known[name] for known in found.values()] for name in SERVED
        }
        columns |= {
            "status": ["ok"] * len(found),
            "source": ["cache_exact"] * len(found),
            "similarity": [1.0] * len(found),
            "cached_prompt_tokens": [0] * len(found),
            "route_reason": ["answered while calibrating"] * len(found),
        }
        return patch(table, list(found), columns)

    def _known(self, row: dict[str, Any]) -> dict[str, Any] | None:
        request = Request.from_json(row["_request"])
        values = {name: row.get(name) for name in self._keyed_by}
        return None if request.tier else self._by_key.get(known_key(request, values))
