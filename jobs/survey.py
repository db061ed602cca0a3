"""One look at a whole input before a run: how much of it must be answered, and a fair sample.

Requests are told apart by the first half of their keys, as a run tells them by the whole. The
smallest of such numbers are a random sample of the requests, each as likely as any other however
often it is asked. Beside them those that are asked most often are looked at, because a few may be
most of the input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.hosts import Intake
from jobs.preflight import Plan, look_at_each
from pipelines.blocks import Block
from pipelines.keys import digest
from pipelines.schema import TRAVELLING
from pipelines.settle import key_numbers
from pipelines.storage import Directory

Marks = NDArray[np.uint64]


@dataclass(frozen=True)
class Survey:
    """Attributes:
    bad: rows that hold no valid request.
    known: rows that ask what the run has answered already.
    requests: what is left to be answered, each once.
    asking: rows that ask these.
    sample: of these, a row for each, as the router gets it.
    times: how many rows ask each of the sample.
    drawn: whether chance alone brought it there.
    """

    bad: int
    known: int
    requests: int
    asking: int
    sample: pa.Table
    times: list[int]
    drawn: list[bool]


def survey(plan: Plan, blocks: Sequence[Block], directory: Directory, size: int) -> Survey:
    """Look at every row of these blocks.

    Args:
        directory: OUTPUT, whose answers need not be paid again.
        size: requests of the sample, at most.
    """
    config = plan.config
    source, output = (config.input.path, config.storage), (config.output.path, config.storage)
    intake = Intake(plan.dialect, plan.schema, plan.policy, source, output, [])
    looks = look_at_each(_look, [(block, intake, config.dedup) for block in blocks], blocks)
    marks, rows = np.unique(_joined([own for own, _ in looks]), return_counts=True)
    known = np.isin(marks, _answered(directory)) if config.dedup else np.zeros(len(marks), bool)
    left, times = marks[~known], rows[~known]
    often = _most_often(times, size // 4)
    drawn = np.setdiff1d(np.arange(len(left)), often)[: size - len(often)]
    at = np.sort(np.concatenate([often, drawn]))
    chosen = left[at]
    holding = [
        block for block, (own, _) in zip(blocks, looks, strict=True) if np.isin(own, chosen).any()
    ]
    taking = (intake, config.dedup, chosen, plan.dialect.keyed_by)
    taken = look_at_each(_take, [(block, *taking) for block in holding], holding)
    # One row of each: those that repeat it are no other.
    _, first = np.unique(_joined([own for own, _ in taken]), return_index=True)
    sample = pa.concat_tables([table for _, table in taken]).take(first) if taken else pa.table({})
    return Survey(
        bad=sum(bad for _, bad in looks),
        known=int(rows[known].sum()),
        requests=len(left),
        asking=int(times.sum()),
        sample=sample,
        times=times[at].tolist(),
        drawn=np.isin(at, drawn).tolist(),
    )


def _most_often(times: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Places of what is asked more than once, most often first."""
    repeated = np.flatnonzero(times > 1)
    return repeated[np.argsort(-times[repeated], kind="stable")[:most]]


def _look(block: Block, intake: Intake, dedup: bool) -> tuple[Marks, int]:
    """The marks of a block's requests, and how many of its rows are none."""
    table = intake.read(block)
    marks, places = _marks(table, dedup)
    return marks, table.num_rows - len(places)


def _take(
    block: Block, intake: Intake, dedup: bool, chosen: Marks, keyed_by: Sequence[str]
) -> tuple[Marks, pa.Table]:
    """The rows of a block that are in the sample, and their marks."""
    table = intake.read(block)
    marks, places = _marks(table, dedup)
    mine = np.flatnonzero(np.isin(marks, chosen))
    names = [name for name in keyed_by if name in table.column_names]
    return marks[mine], table.select([*names, *TRAVELLING.names]).take(places[mine])


def _marks(table: pa.Table, dedup: bool) -> tuple[Marks, NDArray[np.intp]]:
    """Numbers for all requests of a table, and the rows that they stand in."""
    places = np.flatnonzero(table["request_key"].is_valid().to_numpy())
    rows = table.select(["request_key", "row_id", "_shareable"]).take(places).to_pylist()
    # What must be answered for each row has a name of its own.
    names = [
        row["request_key"]
        if dedup and row["_shareable"]
        else digest(f"{row['request_key']} {row['row_id']}".encode()).hex()
        for row in rows
    ]
    return key_numbers(pa.chunked_array([names], pa.string())), places


def _answered(directory: Directory) -> Marks:
    """Of what OUTPUT holds already."""
    found = []
    for name in directory.parts("rows"):
        rows = directory.read_table(name, ["request_key", "status"])
        found.append(key_numbers(rows.filter(pc.equal(rows["status"], "ok"))["request_key"]))
    return _joined(found)


def _joined(marks: Sequence[Marks]) -> Marks:
    return np.concatenate([*marks, np.empty(0, np.uint64)])
