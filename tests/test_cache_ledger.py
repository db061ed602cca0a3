from collections.abc import Iterable

import pyarrow as pa
import pytest

from pipelines.cache_ledger import (
    EVIDENCE_SCHEMA,
    Account,
    Terms,
    add_rows,
    evidence_lines,
    opened,
    past_evidence,
    standings,
    to_recompute,
)
from pipelines.wrong_hits import LEVELS, Evidence

TERMS = Terms(limit=0.01, confidence=0.95, levels=LEVELS)
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("cache_group", pa.string()),
        ("similarity", pa.float32()),
        ("cache_audit", pa.string()),
        ("source", pa.string()),
        ("cache_entry", pa.string()),
    ]
)
Row = tuple[str | None, float | None, str | None, str]


def table(rows: Iterable[Row], first: int = 0) -> pa.Table:
    lines = [(f"r{i}", *row, "e") for i, row in enumerate(rows, first)]
    return pa.table([list(column) for column in zip(*lines, strict=True)], schema=SCHEMA)


def audits(group: str, similarity: float, agree: int, differ: int = 0) -> list[Row]:
    rows: list[Row] = [(group, similarity, "agree", "generated")] * agree
    return rows + [(group, similarity, "differ", "generated")] * differ


def hits(group: str | None, similarity: float | None, count: int) -> list[Row]:
    return [(group, similarity, None, "cache_semantic")] * count


def account(rows: list[Row], past: dict[str, Evidence] | None = None) -> dict[str, Account]:
    return add_rows(opened(past or {}), table(rows), TERMS)


def clean(audited: int, level: int = 0) -> Evidence:
    return Evidence.none().count(level, audited, 0)


def test_the_report_says_what_each_group_served_and_what_bounds_it() -> None:
    rows = audits("good", 0.99, 403) + hits("good", 0.98, 7) + audits("bad", 0.98, 300, 9)
    rows += audits("mixed", 0.98, 50, 30) + audits("mixed", 0.996, 706)
    # Neither exact hits nor rows that met no candidate say anything about wrong hits.
    rows += [(None, None, None, "cache_exact"), (None, None, None, "generated")]
    bad, good, mixed = standings(account(rows), TERMS)
    assert (good.group, good.state, good.threshold) == ("good", "open", 0.98)
    assert (good.served, good.audited, good.wrong) == (7, 403, 0)
    assert 0.009 < good.bound <= 0.01
    assert (bad.state, bad.threshold, bad.audited, bad.wrong) == ("closed", None, 309, 9)
    assert bad.bound > 0.01
    assert (mixed.threshold, mixed.audited, mixed.wrong) == (0.985, 706, 0)


def test_a_run_over_many_tables_is_the_same_as_over_one() -> None:
    rows = (
        audits("a", 0.98, 450, 1) + hits("a", 0.98, 150) + audits("b", 0.99, 40) + hits("b", 1, 2)
    )
    apart = opened({})
    for i in range(0, len(rows), 100):
        apart = add_rows(apart, table(rows[i : i + 100], i), TERMS)
    assert apart == account(rows)


def test_hits_below_the_threshold_at_the_end_of_the_run_are_recomputed() -> None:
    past = {"open": clean(1000), "risen": clean(710, 2), "closed": clean(500)}
    rows = hits("open", 0.98, 1) + hits("risen", 0.98, 1) + hits("risen", 0.985, 1)
    rows += hits("closed", 1.0, 1) + hits("unknown", 1.0, 1) + hits(None, 1.0, 1)
    rows += hits("open", None, 1) + hits("open", 0.97, 1) + hits("open", float("nan"), 1)
    rows += audits("risen", 0.98, 0, 2) + audits("closed", 0.98, 0, 1)
    rows += [("open", 0.98, "differ", "generated")]
    ids = to_recompute(table(rows), account(rows, past), TERMS).to_pylist()
    assert ids == ["r1", "r3", "r4", "r5", "r6", "r7", "r8"]


def test_hits_before_an_alarm_are_recomputed_even_if_the_group_opened_again() -> None:
    rows = hits("a", 0.99, 3) + audits("a", 0.99, 0, 5) + audits("a", 0.99, 1200)
    accounts = account(rows, {"a": clean(20_000)})
    (standing,) = standings(accounts, TERMS)
    assert (standing.state, standing.alarms) == ("open", 1)
    assert len(to_recompute(table(rows), accounts, TERMS)) == 3


def stored(lines: pa.Table, new: pa.Table) -> pa.Table:
    """A store that keeps the last line of each key."""
    by_key = {
        (v["group"], v["run_id"], v["level"]): v for v in (lines.to_pylist() + new.to_pylist())
    }
    return pa.Table.from_pylist(list(by_key.values()), schema=EVIDENCE_SCHEMA)


@pytest.mark.parametrize("differ", [0, 1, 40])
def test_settling_a_run_again_changes_nothing(differ: int) -> None:
    """Also when an alarm (at 40) dropped what earlier runs had found."""
    lines = evidence_lines(account(audits("a", 0.98, 5000) + audits("b", 0.99, 9)), "first")
    rows = audits("a", 0.98, 0, differ) + audits("a", 0.99, 700)
    half = account(rows[:300], past_evidence(lines, LEVELS, "second"))
    lines = stored(lines, evidence_lines(half, "second"))
    for _ in range(2):
        accounts = account(rows, past_evidence(lines, LEVELS, "second"))
        lines = stored(lines, evidence_lines(accounts, "second"))
        evidence = past_evidence(lines, LEVELS)
        assert evidence["a"] == accounts["a"].group.evidence
        assert evidence["a"].from_level(0)[0] == (5700 + differ if differ < 40 else 737)
        assert evidence["b"] == clean(9, 2)


def test_a_run_that_audited_nothing_leaves_no_lines() -> None:
    past = {"a": clean(400)}
    lines = evidence_lines(account(hits("a", 0.98, 2), past), "run")
    assert lines.num_rows == 0
    assert lines.schema == EVIDENCE_SCHEMA
    assert past_evidence(lines, LEVELS) == {}


def test_two_runs_that_both_dropped_the_same_past_leave_no_evidence_below_zero() -> None:
    past = evidence_lines(account(audits("a", 0.98, 5000)), "past")
    bad = account(audits("a", 0.98, 10, 10), past_evidence(past, LEVELS))
    lines = pa.concat_tables([past, evidence_lines(bad, "one"), evidence_lines(bad, "two")])
    audited, wrong = past_evidence(lines, LEVELS)["a"].from_level(0)
    assert 0 <= wrong <= audited < 100


def test_evidence_at_other_levels_counts_at_the_next_lower_one() -> None:
    lines = evidence_lines(account(audits("a", 0.98, 5) + audits("a", 0.996, 7, 1)), "run")
    assert past_evidence(lines, (0.985, 0.99)) == {"a": Evidence((0.985, 0.99), (0, 8), (0, 1))}
