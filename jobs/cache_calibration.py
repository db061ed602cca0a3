"""`nightmill calibrate`: evidence for the response cache before a run needs it.

Looks for questions in the input that one answer could serve, has both of each pair answered, and
compares the answers. Nothing of that is lost: the answers are in the response cache afterwards, and
the run that follows finds them there.
"""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from actors.embedder import Embedder
from actors.in_flight import Arrival, InFlight
from jobs.batch import run
from jobs.preflight import Plan, plan_run
from jobs.summary import Summary
from pipelines.blocks import Block
from pipelines.config import RunConfig, Semantic
from pipelines.errors import UsageProblem
from pipelines.gates import conflict
from pipelines.intake import read_block
from pipelines.keys import digest
from pipelines.reading import read_parquet, read_rows
from pipelines.requests import Request
from pipelines.semantic import Question, question_of
from pipelines.storage import Directory, open_filesystem
from pipelines.wrong_hits import audits_needed, levels_from

Say = Callable[[str], None]
_FOLDER = "calibration"


@dataclass(frozen=True)
class Pair:
    """Two rows, by their places in what was read, whose questions one answer could serve."""

    group: str
    leader: int
    follower: int


@dataclass(frozen=True)
class Calibration:
    """What was found and paid for.

    Attributes:
        rows: of the input that were looked at.
        pairs: by group, those found among them.
        needed: audits without a wrong answer that open a group.
        summary: of the run that answered the pairs; None if no group had pairs enough.
    """

    rows: int
    pairs: dict[str, int]
    needed: int
    summary: Summary | None


def calibrate(config: RunConfig, rows: int, say: Say, divert_stderr: bool = False) -> Calibration:
    """Answer the pairs of every group that has enough of them to be opened.

    Args:
        rows: of the input to look at, from its beginning.
        divert_stderr: send what libraries print during the run to a log file.

    Raises:
        UsageProblem: there is no semantic cache to calibrate, or the input cannot be read.
    """
    semantic = _semantic(config)
    plan = plan_run(config, datetime.now(UTC).date())
    blocks = list(_first_blocks(plan, rows))
    say(f"looking for pairs in {sum(b.num_rows for b in blocks):,} rows")
    pairs = _pairs(plan, semantic, blocks)
    found = Counter(pair.group for pair in pairs)
    needed = audits_needed(
        semantic.max_wrong_hits, semantic.confidence, levels_from(semantic.similarity)
    )
    # Fewer could not open the group, whatever came of them.
    wanted = [pair for pair in pairs if found[pair.group] >= needed]
    say(f"{len(pairs):,} pairs in {len(found)} groups; {len(wanted):,} in groups that can open")
    summary = _answered(plan, blocks, wanted, divert_stderr) if wanted else None
    return Calibration(sum(b.num_rows for b in blocks), dict(found), needed, summary)


def _semantic(config: RunConfig) -> Semantic:
    cache = config.cache_in_use
    if cache is None or cache.semantic is None:
        raise UsageProblem(
            "response_cache.semantic: is not configured, so there is nothing to calibrate; "
            "name an embedder there"
        )
    return cache.semantic


def _first_blocks(plan: Plan, rows: int) -> Iterator[Block]:
    seen = 0
    for block in plan.blocks:
        if seen >= rows:
            return
        seen += block.num_rows
        yield block


def _pairs(plan: Plan, semantic: Semantic, blocks: Sequence[Block]) -> list[Pair]:
    """Every row with the nearest one before it that one answer could serve as well."""
    questions = _questions(plan, blocks)
    embedder = Embedder(semantic)
    texts = sorted({question.text for _, _, question in questions})
    vectors = dict(zip(texts, embedder.embed(texts), strict=True)) if texts else {}
    arrivals = [
        Arrival(key, question.scope, question.text, vectors[question.text], None, False)
        for _, key, question in questions
    ]
    leads = InFlight(conflict, semantic.similarity, len(arrivals)).join(arrivals)
    places = {key: place for place, key, _ in questions}
    return [
        Pair(question.scope.hex(), places[lead.key], place)
        for (place, _, question), lead in zip(questions, leads, strict=True)
        if lead
    ]


def _questions(plan: Plan, blocks: Sequence[Block]) -> list[tuple[int, str, Question]]:
    """(place, request key, question) of the distinct rows that a similar answer may serve."""
    fs, _ = open_filesystem(plan.config.input.path, plan.config.storage)
    columns = [name for name in plan.dialect.keyed_by if name in plan.schema.names]
    found: dict[str, tuple[int, Question]] = {}
    first = 0
    for block in blocks:
        table = read_block(block, plan.dialect, plan.schema, plan.policy, fs)
        for i, row in enumerate(table.select(["request_key", "_request", *columns]).to_pylist()):
            if row["_request"] is None or row["request_key"] in found:
                continue
            values = {name: row.get(name) for name in plan.dialect.keyed_by}
            request = Request.from_json(row["_request"])
            question = question_of(request, plan.policy, values, plan.dialect.defaults)
            if question:
                found[row["request_key"]] = (first + i, question)
        first += block.num_rows
    return [(place, key, question) for key, (place, question) in found.items()]


def _answered(
    plan: Plan, blocks: Sequence[Block], wanted: Sequence[Pair], divert_stderr: bool
) -> Summary:
    """A run over the rows of the pairs, in which every candidate is audited."""
    config = plan.config
    places = sorted({place for pair in wanted for place in (pair.leader, pair.follower)})
    pairs_file = _written(plan, blocks, places)
    # The same pairs are the same run, which goes on where it stopped; others are another.
    folder = f"{_FOLDER}/{digest(pairs_file).hex()[:12]}"
    output = Directory(f"{config.output.path.rstrip('/')}/{folder}", config.storage)
    name = f"pairs.{plan.blocks[0].file.format}"
    # Written again it would be a newer file, and so another input.
    if not output.exists(name):
        output.write(name, pairs_file)
    changed = {
        "input": {**config.input.model_dump(), "path": f"{output.url}/{name}", "order": "stream"},
        "output": {"path": f"{output.url}/answers"},
        "response_cache": _auditing_all(config),
    }
    return run(
        RunConfig.model_validate({**config.model_dump(), **changed}), divert_stderr=divert_stderr
    )


def _auditing_all(config: RunConfig) -> dict[str, Any]:
    cache: dict[str, Any] = config.response_cache.model_dump() if config.response_cache else {}
    return {**cache, "semantic": {**cache["semantic"], "audit_share": 1.0}}


def _written(plan: Plan, blocks: Sequence[Block], places: Sequence[int]) -> bytes:
    """These rows in the input's own format, so that they are read again as the same requests."""
    fs, _ = open_filesystem(plan.config.input.path, plan.config.storage)
    wanted: dict[Block, list[int]] = defaultdict(list)
    first = 0
    for block in blocks:
        wanted[block] = [p - first for p in places if first <= p < first + block.num_rows]
        first += block.num_rows
    if plan.blocks[0].file.format == "parquet":
        sink = io.BytesIO()
        tables = [read_parquet(block, fs).take(rows) for block, rows in wanted.items()]
        pq.write_table(pa.concat_tables(tables, promote_options="permissive"), sink)
        return sink.getvalue()
    rows = [read_rows(block, fs)[i] for block, at in wanted.items() for i in at]
    dicts = [row for row in rows if isinstance(row, dict)]
    if plan.dialect.format == "csv":
        return _csv(dicts)
    return "".join(json.dumps(row) + "\n" for row in dicts).encode()


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogateescape")


def print_calibration(found: Calibration, console: Console) -> None:
    """What was found, and what each group that was answered may serve now."""
    groups = found.summary.cache_groups if found.summary else []
    table = Table(title=f"pairs among {found.rows:,} rows", title_justify="left")
    for heading in ("group", "pairs", "audited", "wrong", "at most wrong per hit", "served from"):
        table.add_column(heading, justify="right")
    audited = {group["group"]: group for group in groups}
    for name, pairs in sorted(found.pairs.items(), key=lambda item: -item[1]):
        cells = [f"{name[:8]}", f"{pairs:,}"]
        if name in audited:
            group = audited[name]
            at = "closed" if group["threshold"] is None else f"{group['threshold']:g}"
            counts = [f"{group['audited']:,}", f"{group['wrong']:,}"]
            cells += [*counts, f"{100 * group['bound']:.2g} %", at]
        else:
            cells += ["", "", "", f"closed: fewer than {found.needed:,} pairs"]
        table.add_row(*cells)
    console.print(table)
    if found.summary:
        console.print(f"bill: ${found.summary.bill_usd:.6f}; answers: {found.summary.output}")
