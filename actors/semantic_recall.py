"""Recall by similarity: a cached answer for a question that is worded otherwise.

Similarity only proposes. A proposal becomes a hit if no gate sees a conflict, the verifier (where
there is one) agrees, and the rate of wrong hits in its group is bounded; otherwise the row is
answered anew, and where a proposal was that good the two answers are compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from actors.in_flight import Arrival, Lead
from actors.recall import answer_columns
from pipelines.cache_entries import CachedAnswer, Candidate
from pipelines.requests import Request
from pipelines.schema import patch, rows_at
from pipelines.semantic import Question, question_of
from pipelines.waiting import undecided_rows
from pipelines.wrong_hits import Action, decide

_PROPOSALS = 4
"""Entries looked at for one question, nearest first."""
HALF = np.float16
"""What vectors travel and are kept in: similarities move by less than 1e-4."""


class Neighbours(Protocol):
    """A response cache, as far as it is needed here."""

    def nearest(
        self, scopes: Sequence[bytes], vectors: np.ndarray, at_least: float, limit: int
    ) -> list[list[Candidate]]: ...

    def recall(self, keys: Sequence[str]) -> dict[str, CachedAnswer]: ...


@dataclass(frozen=True)
class Eligible:
    """A row that an answer to a similar question may serve."""

    row: int
    row_id: str
    key: str
    question: Question
    vector: np.ndarray

    @property
    def group(self) -> str:
        """Whose wrong hits are counted together."""
        return self.question.scope.hex()


@dataclass(frozen=True)
class Proposal:
    candidate: Candidate
    answer: CachedAnswer


@dataclass(frozen=True)
class Rules:
    """What recall by similarity decides by; each is a function so that any host can bring it.

    Attributes:
        question: of a request and its row's values, or None.
        embed: unit vectors of texts, float32 of shape (texts, dimensions).
        conflict: what forbids one answer for two questions, or None.
        agree: of (cached, asked) pairs without conflict, which one answer serves.
        thresholds: by group, the similarity from which wrong hits are bounded, or None.
        chosen: whether a row with this id is picked for an audit.
        join: the rows of this run that arrivals may follow.
    """

    at_least: float
    embed: Callable[[Sequence[str]], np.ndarray]
    conflict: Callable[[str, str], str | None]
    agree: Callable[[Sequence[tuple[str, str]]], Sequence[bool]]
    thresholds: Callable[[Sequence[str]], Mapping[str, float | None]]
    chosen: Callable[[str], bool]
    join: Callable[[Sequence[Arrival]], Sequence[Lead | None]]


class SemanticRecall:
    """The semantic half of the recall step, for the rows that the exact half left.

    Args:
        policy, keyed_by, defaults: as for `question_of`; `keyed_by` names columns.
    """

    def __init__(
        self,
        rules: Rules,
        cache: Neighbours,
        policy: bytes,
        keyed_by: Sequence[str],
        defaults: Mapping[str, Any],
    ) -> None:
        self._rules, self._cache = rules, cache
        self._policy, self._keyed_by, self._defaults = policy, keyed_by, defaults

    def recall(self, table: pa.Table) -> pa.Table:
        rows = self._eligible(table)
        if not rows:
            return table
        thresholds = self._rules.thresholds(sorted({row.group for row in rows}))
        proposals = self._proposals(rows)
        actions = {
            row.row: decide(
                proposals[row.row].candidate.similarity,
                thresholds[row.group],
                self._rules.chosen(row.row_id),
            )
            for row in rows
            if row.row in proposals
        }
        table = _with_vectors(table, rows)
        served = [row for row in rows if actions.get(row.row) == "serve"]
        table = _served(table, served, proposals, thresholds)
        compared = [row for row in rows if actions.get(row.row) in ("trial", "audit")]
        table = _compared(table, compared, proposals, actions)
        left = [row for row in rows if row.row not in proposals]
        return self._coalesced(table, left, thresholds)

    def _eligible(self, table: pa.Table) -> list[Eligible]:
        at = undecided_rows(table)
        columns = [name for name in self._keyed_by if name in table.column_names]
        wanted = table.select(["row_id", "request_key", "_request", "_shareable", *columns])
        found = []
        for place, row in zip(at, rows_at(wanted, at).to_pylist(), strict=True):
            values = {name: row.get(name) for name in self._keyed_by}
            request = Request.from_json(row["_request"])
            question = question_of(request, self._policy, values, self._defaults)
            if question is not None and row["_shareable"]:
                found.append((place, row["row_id"], row["request_key"], question))
        texts = sorted({question.text for _, _, _, question in found})
        vectors = dict(zip(texts, self._rules.embed(texts), strict=True)) if texts else {}
        return [Eligible(*row, vectors[row[3].text]) for row in found]

    def _proposals(self, rows: Sequence[Eligible]) -> dict[int, Proposal]:
        """By row, the nearest entry that could answer it."""
        scopes = [row.question.scope for row in rows]
        vectors = np.stack([row.vector for row in rows])
        near = self._cache.nearest(scopes, vectors, self._rules.at_least, _PROPOSALS)
        passed = {
            row.row: candidate
            for row, candidates in zip(rows, near, strict=True)
            if (candidate := self._first_without_conflict(row.question.text, candidates))
        }
        texts = {row.row: row.question.text for row in rows}
        pairs = [(candidate.question, texts[row]) for row, candidate in passed.items()]
        agreed = self._rules.agree(pairs) if pairs else []
        passed = {row: passed[row] for row, yes in zip(list(passed), agreed, strict=True) if yes}
        answers = self._cache.recall(sorted({c.request_key for c in passed.values()}))
        return {
            row: Proposal(candidate, answers[candidate.request_key])
            for row, candidate in passed.items()
            if candidate.request_key in answers
        }

    def _first_without_conflict(
        self, asked: str, candidates: Sequence[Candidate]
    ) -> Candidate | None:
        free = (c for c in candidates if self._rules.conflict(c.question, asked) is None)
        return next(free, None)

    def _coalesced(
        self,
        table: pa.Table,
        rows: Sequence[Eligible],
        thresholds: Mapping[str, float | None],
    ) -> pa.Table:
        """Let rows follow one that is being answered, or be compared with it later."""
        arrivals = [
            Arrival(
                row.key,
                row.question.scope,
                row.question.text,
                row.vector,
                thresholds[row.group],
                self._rules.chosen(row.row_id),
            )
            for row in rows
        ]
        leads = self._rules.join(arrivals) if arrivals else []
        led = [(row, lead) for row, lead in zip(rows, leads, strict=True) if lead]
        columns: dict[str, Sequence[object]] = {
            "source": ["duplicate" if lead.action == "serve" else None for _, lead in led],
            "similarity": [lead.similarity for _, lead in led],
            "cache_entry": [lead.key for _, lead in led],
            "cache_group": [row.group for row, _ in led],
            "cache_rule": [_rule(lead.action, thresholds[row.group]) for row, lead in led],
        }
        return patch(table, [row.row for row, _ in led], columns)


def _rule(action: Action, threshold: float | None) -> str:
    return f"similarity>={threshold:g}" if action == "serve" else action


def _with_vectors(table: pa.Table, rows: Sequence[Eligible]) -> pa.Table:
    columns: dict[str, Sequence[object]] = {
        "_scope": [row.question.scope for row in rows],
        "_vector": [row.vector.astype(HALF).tobytes() for row in rows],
    }
    return patch(table, [row.row for row in rows], columns)


def _served(
    table: pa.Table,
    rows: Sequence[Eligible],
    proposals: Mapping[int, Proposal],
    thresholds: Mapping[str, float | None],
) -> pa.Table:
    answers = [proposals[row.row].answer for row in rows]
    columns: dict[str, Sequence[object]] = {
        **answer_columns(answers, "cache_semantic"),
        **_evidence(rows, proposals),
        "cache_rule": [_rule("serve", thresholds[row.group]) for row in rows],
    }
    return patch(table, [row.row for row in rows], columns)


def _compared(
    table: pa.Table,
    rows: Sequence[Eligible],
    proposals: Mapping[int, Proposal],
    actions: Mapping[int, Action],
) -> pa.Table:
    columns: dict[str, Sequence[object]] = {
        **_evidence(rows, proposals),
        "cache_rule": [_rule(actions[row.row], None) for row in rows],
        "_cached": [proposals[row.row].answer.response for row in rows],
    }
    return patch(table, [row.row for row in rows], columns)


def _evidence(
    rows: Sequence[Eligible], proposals: Mapping[int, Proposal]
) -> dict[str, list[object]]:
    candidates = [proposals[row.row].candidate for row in rows]
    return {
        "similarity": [c.similarity for c in candidates],
        "cache_entry": [c.request_key for c in candidates],
        "cache_group": [row.group for row in rows],
    }
