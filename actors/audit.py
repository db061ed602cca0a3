"""The audit step: rows that were answered anew although the cache had a candidate for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.schema import patch

_COLUMNS = (
    "row_id", "request_key", "status", "source", "response", "finish_reason", "similarity",
    "cache_entry", "cache_group", "_cached", "_scope",
)  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """What came of comparing one row's fresh answer with the one that it would have been served."""

    row_id: str
    group: str
    similarity: float
    wrong: bool


@dataclass(frozen=True)
class Auditor:
    """Compares answers.

    Attributes:
        agree: of (cached, fresh) answers, which count as the same.
        report: takes the audits; a row that Ray runs again is reported again.
        known: answers of this run's rows, by request key, as far as there are any yet.
        tell: takes the answers of rows that others may be compared with.
    """

    agree: Callable[[Sequence[tuple[str, str]]], Sequence[bool]]
    report: Callable[[Sequence[Audit]], None]
    known: Callable[[Sequence[str]], Mapping[str, str]]
    tell: Callable[[Mapping[str, str]], None]

    def audit(self, table: pa.Table) -> pa.Table:
        """Fill `cache_audit` of the rows whose answers can be compared.

        An answer that was cut short says nothing about the question, so it is not compared.
        """
        complete = pc.and_(pc.equal(table["status"], "ok"), pc.equal(table["source"], "generated"))
        complete = pc.and_(complete, pc.equal(table["finish_reason"], "stop"))
        complete = pc.and_(complete, pc.is_valid(table["_scope"]))
        at = pc.indices_nonzero(pc.fill_null(complete, False)).to_pylist()
        if not at:
            return table
        rows = table.select(_COLUMNS).take(at).to_pylist()
        answers = {row["request_key"]: row["response"] for row in rows}
        self.tell(answers)
        return self._compared(table, at, rows, answers)

    def _compared(
        self,
        table: pa.Table,
        at: Sequence[int],
        rows: Sequence[dict[str, Any]],
        answers: Mapping[str, str],
    ) -> pa.Table:
        unknown = {r["cache_entry"] for r in rows if r["cache_entry"] and r["_cached"] is None}
        elsewhere = sorted(unknown - answers.keys())
        answers = {**answers, **(self.known(elsewhere) if elsewhere else {})}
        pairs = []
        for place, row in zip(at, rows, strict=True):
            cached = answers.get(row["cache_entry"]) if row["_cached"] is None else row["_cached"]
            if row["cache_entry"] and cached is not None:
                pairs.append((place, row, cached))
        if not pairs:
            return table
        same = self.agree([(cached, row["response"]) for _, row, cached in pairs])
        self.report(
            [
                Audit(row["row_id"], row["cache_group"], row["similarity"], not yes)
                for (_, row, _), yes in zip(pairs, same, strict=True)
            ]
        )
        verdicts = ["agree" if yes else "differ" for yes in same]
        return patch(table, [place for place, _, _ in pairs], {"cache_audit": verdicts})
