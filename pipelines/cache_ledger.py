"""The books of recall by similarity: hits, audits and bounds, from the rows of a run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.wrong_hits import Evidence, evidence_of, threshold, upper_bound

LEDGER_COLUMNS = ["row_id", "source", "similarity", "cache_entry", "cache_group", "cache_audit"]
EVIDENCE = pa.schema(
    [
        ("group", pa.string()),
        ("level", pa.float64()),
        ("audited", pa.int64()),
        ("wrong", pa.int64()),
        # Whether a change of the group's hits made all that was recorded before void.
        ("voids", pa.bool_()),
        ("recorded_at", pa.timestamp("us", "UTC")),
    ]
)
RECOMPUTE = pa.schema([("row_id", pa.string()), ("cache_group", pa.string())])
ByGroup = Mapping[str, Evidence]


@dataclass(frozen=True)
class GroupReport:
    """One group at the end of a run.

    Attributes:
        served: rows answered by a similar question's answer in this run.
        audited, wrong: in this run.
        bound: on the rate of wrong hits from the threshold on, by all evidence there is; of a
            closed group, of all its candidates.
        threshold: from which similarity hits are served; None: the group is closed.
        recompute: hits of this run that would not be served now.
    """

    group: str
    served: int
    audited: int
    wrong: int
    bound: float
    threshold: float | None
    recompute: int


def evidence_of_rows(rows: pa.Table, levels: tuple[float, ...]) -> dict[str, Evidence]:
    """What the audits among these rows show, by group."""
    audited = rows.filter(pc.is_valid(rows["cache_audit"]))
    pairs: dict[str, list[tuple[float, bool]]] = {}
    for row in audited.to_pylist():
        verdict = (row["similarity"], row["cache_audit"] == "differ")
        pairs.setdefault(row["cache_group"], []).append(verdict)
    return {group: evidence_of(found, levels) for group, found in pairs.items()}


def hits(rows: pa.Table) -> pa.Table:
    """The rows that were served the answer to another question."""
    from_cache = pc.is_in(rows["source"], value_set=pa.array(["cache_semantic", "duplicate"]))
    return rows.filter(pc.and_(from_cache, pc.is_valid(rows["cache_entry"])))


def served_by_group(rows: pa.Table) -> dict[str, int]:
    counted = pc.value_counts(hits(rows)["cache_group"]).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}


def not_served_now(rows: pa.Table, thresholds: Mapping[str, float | None]) -> pa.Table:
    """Of these rows' hits those below their group's threshold: of schema `RECOMPUTE`."""
    found = hits(rows).select(["row_id", "cache_group", "similarity"]).to_pylist()
    gone = []
    for row in found:
        limit = thresholds.get(row["cache_group"])
        if limit is None or row["similarity"] < limit:
            gone.append({name: row[name] for name in RECOMPUTE.names})
    return pa.Table.from_pylist(gone, schema=RECOMPUTE)


def report(
    group: str,
    served: int,
    own: Evidence,
    every: Evidence,
    limit: float,
    confidence: float,
    recompute: int,
) -> GroupReport:
    """One group's line.

    Args:
        own, every: the evidence of this run, and all that there is.
    """
    opened = threshold(every, limit, confidence)
    level = every.levels[0] if opened is None else opened
    audited, wrong = own.from_level(own.levels[0])
    bound = upper_bound(*every.from_level(level), confidence)
    return GroupReport(group, served, audited, wrong, bound, opened, recompute)


def merged(*parts: ByGroup) -> dict[str, Evidence]:
    """The sum, group by group."""
    total: dict[str, Evidence] = {}
    for part in parts:
        for group, evidence in part.items():
            total[group] = total[group] + evidence if group in total else evidence
    return total


def evidence_table(evidence: ByGroup, voided: Iterable[str], recorded_at: datetime) -> pa.Table:
    """One run's evidence as it is kept, of schema `EVIDENCE`."""
    gone = set(voided)
    rows = [
        {
            "group": group,
            "level": level,
            "audited": audited,
            "wrong": wrong,
            "voids": group in gone,
            "recorded_at": recorded_at,
        }
        for group, found in evidence.items()
        for level, audited, wrong in zip(found.levels, found.audited, found.wrong, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=EVIDENCE)


def evidence_by_group(tables: Iterable[pa.Table], levels: tuple[float, ...]) -> dict[str, Evidence]:
    """What several runs have recorded together, at these levels.

    A level that is no longer one counts as the next lower; what lay below all of them is left
    out, because it says nothing about hits that can still happen.
    """
    rows = [row for table in tables for row in table.to_pylist()]
    rows.sort(key=lambda row: row["recorded_at"])
    since: dict[str, datetime] = {r["group"]: r["recorded_at"] for r in rows if r["voids"]}
    counts: dict[str, dict[float, list[int]]] = {}
    for row in rows:
        fits = [level for level in levels if level <= row["level"]]
        if fits and row["recorded_at"] >= since.get(row["group"], row["recorded_at"]):
            group = counts.setdefault(row["group"], {level: [0, 0] for level in levels})
            group[fits[-1]][0] += row["audited"]
            group[fits[-1]][1] += row["wrong"]
    return {
        group: Evidence(
            levels,
            tuple(of[level][0] for level in levels),
            tuple(of[level][1] for level in levels),
        )
        for group, of in counts.items()
    }
