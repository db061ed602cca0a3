"""Looking at an input before a run: its columns' types, and whether its ids are unique."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipelines import columns as user_columns
from pipelines.blocks import Block, InputFile
from pipelines.errors import UsageProblem
from pipelines.intake import Dialect, id_text
from pipelines.keys import SORTABLE, digest, sortable
from pipelines.reading import Row, read_parquet, read_rows
from pipelines.schema import TRAVELLING


@dataclass(frozen=True)
class Scan:
    """What reading a block before the run tells: column types, and the ids' digests."""

    votes: dict[str, user_columns.Vote]
    ids: np.ndarray


def scan_block(block: Block, dialect: Dialect, fs: AbstractFileSystem) -> Scan:
    """Look at a block of a text file before anything is spent."""
    rows = [row for row in read_rows(block, fs) if isinstance(row, dict)]
    ids = _id_digests(rows, dialect.id_column)
    if block.file.format == "csv":
        # CSV cells are text, and text they stay: a guess could change what they say.
        return Scan({name: pa.string() for row in rows[:1] for name in row}, ids)
    return Scan(user_columns.votes(rows, dialect.columns), ids)


def scan_parquet_ids(file: InputFile, column: str, fs: AbstractFileSystem) -> np.ndarray:
    """Digests of the ids of a Parquet file that has an id column."""
    with fs.open(file.path, "rb") as source:
        batches = pq.ParquetFile(source).iter_batches(columns=[column])
        return np.concatenate(
            [_id_digests(batch.to_pylist(), column) for batch in batches] or [_no_ids()]
        )


def duplicates(digests: Iterable[np.ndarray], share: int = 0, shares: int = 1) -> np.ndarray:
    """The digests that occur more than once: sorted, dtype `SORTABLE`.

    With `shares` only those whose first byte falls to this `share`, so that no process needs
    all ids at once.
    """
    mine = [own[own.view(np.uint8)[:: own.itemsize] % shares == share] for own in digests]
    ordered = np.sort(np.concatenate([*mine, _no_ids()]))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def rows_with_ids(
    block: Block, dialect: Dialect, wanted: np.ndarray, fs: AbstractFileSystem
) -> list[tuple[str, int]]:
    """(id, ordinal) of the block's rows whose id is among the digests, for an error message."""
    rows = _as_dicts(block, fs)
    found = []
    for offset, row in enumerate(rows):
        given = id_text(row.get(dialect.id_column)) if isinstance(row, dict) else None
        if given is not None and _is_among(sortable(digest(given.encode()))[0], wanted):
            found.append((given, block.first_row + offset))
    return found


def check_columns(schema: pa.Schema, dialect: Dialect) -> None:
    """Refuse an input whose columns cannot work.

    Raises:
        UsageProblem: no request column, or a column that results also have.
    """
    names = schema.names
    needed = (
        ["body"] if dialect.openai_batch else [dialect.columns.prompt, dialect.columns.messages]
    )
    if dialect.openai_batch and "custom_id" not in names:
        raise UsageProblem("input: OpenAI-batch rows need a custom_id; add one to each")
    if not set(needed) & set(names):
        raise UsageProblem(
            f"input: no column {' or '.join(needed)}; there are {', '.join(names) or 'none'}. "
            "To fix: set input.columns.prompt or input.columns.messages to one of them"
        )
    if clash := [name for name in names if name in TRAVELLING.names]:
        raise UsageProblem(
            f"input: columns {', '.join(clash)} have names that the results use; rename them"
        )


def _is_among(value: bytes, ordered: np.ndarray) -> bool:
    at = np.searchsorted(ordered, value)
    return bool(at < len(ordered) and ordered[at] == value)


def _as_dicts(block: Block, fs: AbstractFileSystem) -> list[Row]:
    if block.file.format == "parquet":
        return read_parquet(block, fs).to_pylist()
    return read_rows(block, fs)


def _id_digests(rows: Iterable[Mapping[str, Any]], column: str) -> np.ndarray:
    texts = (id_text(row.get(column)) for row in rows)
    return sortable(b"".join(digest(text.encode()) for text in texts if text is not None))


def _no_ids() -> np.ndarray:
    return np.empty(0, dtype=SORTABLE)
