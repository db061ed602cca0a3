"""The read step: the rows of one block. A line that holds no row is a row that says so."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from io import TextIOWrapper
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipelines.blocks import Block, InputFile
from pipelines.errors import RowProblem, UsageProblem

_BATCH_ROWS = 2048


@dataclass(frozen=True)
class BadLine:
    """A line that holds no row: what it said and why it cannot be read."""

    text: str
    problem: RowProblem


def is_blank(line: bytes) -> bool:
    return line in (b"", b"\r")


Row = dict[str, Any] | BadLine


def read_rows(block: Block, fs: AbstractFileSystem) -> list[Row]:
    """The rows of a block of a text file. A line that holds no row comes as a `BadLine`."""
    if not block.file.seekable:
        return _lines(block.file, fs).take(block.first_row, block.num_rows)
    with fs.open(block.file.path, "rb") as source:
        source.seek(block.start)
        data = source.read(block.length)
    return [parse_line(line) for line in data.split(b"\n") if not is_blank(line)]


def read_parquet(block: Block, fs: AbstractFileSystem) -> pa.Table:
    """The rows of a block of a Parquet file, typed as they are there."""
    rows = _row_group(block.file, fs, block.row_group).take(block.skip, block.num_rows)
    return rows.combine_chunks()


def parse_line(line: bytes) -> Row:
    """One JSONL line."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        problem = RowProblem("invalid_row", f"the line is no valid JSON ({error})")
        return BadLine(line.decode("utf-8", errors="backslashreplace"), problem)
    if not isinstance(row, dict) or not all(_is_unicode(name) for name in row):
        problem = RowProblem("invalid_row", "the line is no JSON object with names for columns")
        return BadLine(line.decode("utf-8-sig"), problem)
    return row


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def parquet_schema(file: InputFile, fs: AbstractFileSystem) -> pa.Schema:
    with fs.open(file.path, "rb") as source:
        return pq.read_schema(source)


def records(file: InputFile, fs: AbstractFileSystem) -> Iterator[Row]:
    """The rows of a text file from its start."""
    with fs.open(file.path, "rb", compression="infer") as source:
        if file.format == "csv":
            yield from _csv_records(source)
        else:
            yield from (parse_line(line.rstrip(b"\n")) for line in source if not is_blank(line))


def _csv_records(source: IO[bytes]) -> Iterator[Row]:
    text = TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(1 << 30)
    reader = csv.reader(text)
    header = next(reader, [])
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise UsageProblem(f"input.path: CSV columns {', '.join(repeated)} stand twice; rename one")
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            problem = RowProblem(
                "invalid_row", f"has {len(cells)} cells where the header has {len(header)}"
            )
            yield BadLine(",".join(cells), problem)
        else:
            # CSV knows no null; an empty cell is the only way to leave a field out.
            yield {name: cell or None for name, cell in zip(header, cells, strict=True)}


class _Lines:
    """The rows of a file that can only be read from its start, kept between blocks.

    Blocks of one file are mostly asked for in order by the same process, so going on where
    the last one ended reads the file about once instead of once a block.
    """

    def __init__(self, file: InputFile, fs: AbstractFileSystem) -> None:
        self._open = partial(records, file, fs)
        self._position = 0
        self._rows = self._open()

    def take(self, first: int, count: int) -> list[Row]:
        if first < self._position:
            self._position, self._rows = 0, self._open()
        ahead = first - self._position
        rows = list(islice(self._rows, ahead, ahead + count))
        self._position = first + len(rows)
        return rows


class _RowGroup:
    """The same for one Parquet row group, which decodes only as a whole."""

    def __init__(self, file: InputFile, fs: AbstractFileSystem, row_group: int) -> None:
        self._open = partial(_batches, file, fs, row_group)
        self._restart()

    def _restart(self) -> None:
        self._position = 0
        self._left: list[pa.RecordBatch] = []
        self._batches = self._open()

    def take(self, first: int, count: int) -> pa.Table:
        if first < self._position:
            self._restart()
        self._pull(first - self._position)
        return pa.Table.from_batches(self._pull(count))

    def _pull(self, count: int) -> list[pa.RecordBatch]:
        pulled = []
        self._position += count
        while count > 0:
            batch = self._left.pop() if self._left else next(self._batches)
            if batch.num_rows > count:
                self._left.append(batch.slice(count))
                batch = batch.slice(0, count)
            count -= batch.num_rows
            pulled.append(batch)
        return pulled


def _batches(file: InputFile, fs: AbstractFileSystem, row_group: int) -> Iterator[pa.RecordBatch]:
    with fs.open(file.path, "rb") as source:
        reader = pq.ParquetFile(source)
        yield from reader.iter_batches(_BATCH_ROWS, row_groups=[row_group])


@lru_cache(maxsize=4)
def _lines(file: InputFile, fs: AbstractFileSystem) -> _Lines:
    return _Lines(file, fs)


@lru_cache(maxsize=4)
def _row_group(file: InputFile, fs: AbstractFileSystem, row_group: int) -> _RowGroup:
    return _RowGroup(file, fs, row_group)
