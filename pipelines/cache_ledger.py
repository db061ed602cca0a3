"""What the audits of a run say about each group of semantic hits, from its committed rows.

Rows have `row_id, cache_group, similarity, cache_audit` (agree | differ | null) and `source`.
They are folded table by table in the order of commits, so that a drift shows as it did in the
run. Evidence outlives the run as lines of `EVIDENCE_SCHEMA`, keyed by group, run and level; a
line holds what the run changed. Lines add up, and a run that is settled again writes the same
ones. Where an alarm dropped the past, the run's lines take it back: they may be negative.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.wrong_hits import (
    Evidence,
    Group,
    confidence_at,
    level_of,
    reaches,
    threshold,
    upper_bound,
)

_SERVED = (pc.field("source") == "cache_semantic") | (
    (pc.field("source") == "duplicate") & pc.field("cache_group").is_valid()
)
"""Hits, and the repeats in the same run of a row that was one."""
LEDGER_COLUMNS = ("row_id", "source", "similarity", "cache_group", "cache_audit")
EVIDENCE_SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        ("run_id", pa.string()),
        ("level", pa.float64()),
        ("audited", pa.int64()),
        ("wrong", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Terms:
    """At most `limit` wrong per hit at `confidence`, and the thresholds that a group may get."""

    limit: float
    confidence: float
    levels: tuple[float, ...]


@dataclass(frozen=True)
class Account:
    """A group, the evidence that it came into the run with, and how many hits it served there."""

    past: Evidence
    group: Group
    served: int = 0


@dataclass(frozen=True)
class Standing:
    """A group's line in the report.

    `audited`, `wrong` and `bound` are those of what its threshold lets through, and of all
    candidates where it is closed.
    """

    group: str
    served: int
    audited: int
    wrong: int
    bound: float
    threshold: float | None
    alarms: int

    @property
    def state(self) -> str:
        return "closed" if self.threshold is None else "open"


def opened(past: Mapping[str, Evidence]) -> dict[str, Account]:
    """The accounts at a run's start."""
    return {name: Account(evidence, Group(evidence)) for name, evidence in past.items()}


def add_rows(accounts: Mapping[str, Account], rows: pa.Table, terms: Terms) -> dict[str, Account]:
    """The accounts after one more table of committed rows."""
    after = dict(accounts)
    none = Evidence.none(terms.levels)
    fresh = Account(none, Group(none))
    for name, count in _served(rows):
        account = after.get(name, fresh)
        after[name] = replace(account, served=account.served + count)
    for name, similarity, wrong in _audits(rows):
        account = after.get(name, fresh)
        group = account.group.after(similarity, wrong, terms.limit, terms.confidence)
        after[name] = replace(account, group=group)
    return after


def _served(rows: pa.Table) -> Iterator[tuple[str, int]]:
    hits = rows.filter(_SERVED & pc.field("cache_group").is_valid())
    for counted in hits["cache_group"].combine_chunks().value_counts().to_pylist():
        yield counted["values"], counted["counts"]


def _audits(rows: pa.Table) -> Iterator[tuple[str, float, bool]]:
    audited = pc.field("cache_audit").is_valid() & pc.field("similarity").is_valid()
    kept = rows.filter(audited & pc.field("cache_group").is_valid())
    columns = [kept[name].to_pylist() for name in ("cache_group", "similarity", "cache_audit")]
    for name, similarity, verdict in zip(*columns, strict=True):
        yield name, similarity, verdict != "agree"


def standings(accounts: Mapping[str, Account], terms: Terms) -> list[Standing]:
    """Every group's line, by name."""
    return [_standing(name, accounts[name], terms) for name in sorted(accounts)]


def _standing(name: str, account: Account, terms: Terms) -> Standing:
    evidence = account.group.evidence
    lowest = threshold(evidence, terms.limit, terms.confidence)
    level = 0 if lowest is None else terms.levels.index(lowest)
    audited, wrong = evidence.from_level(level)
    bound = upper_bound(audited, wrong, confidence_at(level, terms.levels, terms.confidence))
    return Standing(name, account.served, audited, wrong, bound, lowest, account.group.alarms)


def to_recompute(rows: pa.Table, accounts: Mapping[str, Account], terms: Terms) -> pa.Array:
    """The ids of the hits that the run served and would not serve at its end.

    Of a group with an alarm that is every hit: some were served before it, and rows do not say
    which. A hit of no group, or of one without an account, was never bounded.
    """
    hits = rows.filter(_SERVED)
    lowest = {name: _trusted(account, terms) for name, account in accounts.items()}
    columns = [hits[name].to_pylist() for name in ("row_id", "cache_group", "similarity")]
    bad = [
        row_id
        for row_id, group, similarity in zip(*columns, strict=True)
        if similarity is None or not reaches(similarity, lowest.get(group))
    ]
    return pa.array(bad, pa.string())


def _trusted(account: Account, terms: Terms) -> float | None:
    group = account.group
    return None if group.alarms else threshold(group.evidence, terms.limit, terms.confidence)


def evidence_lines(accounts: Mapping[str, Account], run_id: str) -> pa.Table:
    """What the run changed, for every group that it audited: one line per level, zeros too.

    A later, longer settling of the same run so overwrites all that an earlier one wrote.
    """
    lines = [
        (name, run_id, *changed)
        for name, account in sorted(accounts.items())
        if account.group != Group(account.past)
        for changed in _changes(account.past, account.group.evidence)
    ]
    columns = zip(*lines, strict=True) if lines else [[]] * len(EVIDENCE_SCHEMA)
    return pa.table([list(column) for column in columns], schema=EVIDENCE_SCHEMA)


def _changes(past: Evidence, now: Evidence) -> Iterator[tuple[float, int, int]]:
    for i, level in enumerate(now.levels):
        yield level, now.audited[i] - past.audited[i], now.wrong[i] - past.wrong[i]


def past_evidence(
    lines: pa.Table, levels: tuple[float, ...], except_run: str | None = None
) -> dict[str, Evidence]:
    """The evidence of all runs but one, by group: what that one run starts from.

    Lines of other levels count at the highest level below theirs. Two runs at once may both have
    taken back the same past; audits that are missing then are none, wrong ones stay.
    """
    if except_run is not None:
        lines = lines.filter(pc.field("run_id") != except_run)
    sums = lines.group_by(["group", "level"]).aggregate([("audited", "sum"), ("wrong", "sum")])
    total: dict[str, Evidence] = {}
    for line in sums.to_pylist():
        level = level_of(line["level"], levels)
        if level is not None:
            wrong = max(line["wrong_sum"], 0)
            before = total.get(line["group"], Evidence.none(levels))
            audited = max(line["audited_sum"], wrong)
            total[line["group"]] = before.count(level, audited, wrong)
    return total
