"""The read step: find input files, plan their blocks, and read one block at a time.

A block is the unit of reading, of flowing through the chain, and of commit. It is planned once
from the files alone, so that a run which is started again cuts its input at the same places.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import TextIOWrapper
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipelines.config import Input, Storage
from pipelines.errors import RowProblem, UsageProblem
from pipelines.storage import open_filesystem

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_SCAN_CHUNK = 1 << 20
_SMALLEST_BLOCK, _LARGEST_BLOCK = 32, 2048
_LARGEST_BLOCK_BYTES = 4 << 20
_BLOCKS_WANTED = 12


@dataclass(frozen=True)
class InputFile:
    """One file of the input. `number` is its place in the sorted list."""

    number: int
    path: str
    format: str

    @property
    def seekable(self) -> bool:
        """Whether a block of it can be read without reading what stands before."""
        return self.format == "jsonl" and not self.path.endswith(_COMPRESSED)


@dataclass(frozen=True)
class Block:
    """Rows that are read together and committed together.

    Attributes:
        name: names the block's part files; unique in the run and stable across restarts.
        first_row: ordinal of its first row in the file.
        row_group: Parquet: the row group that it lies in; `skip` rows of it come before.
        start, length: seekable text: its bytes.
    """

    name: str
    file: InputFile
    first_row: int
    num_rows: int
    row_group: int = 0
    skip: int = 0
    start: int = 0
    length: int = 0


@dataclass(frozen=True)
class BadLine:
    """A line that holds no row: what it said and why it cannot be read."""

    text: str
    problem: RowProblem


def find_files(config: Input, storage: Storage) -> list[InputFile]:
    """The input's files in a stable order.

    Raises:
        UsageProblem: nothing is there, or nothing there has a known format.
    """
    fs, root = open_filesystem(config.path, storage)
    try:
        paths = _list(fs, root)
    # A storage driver raises what its library raises: no credentials, no such host.
    except Exception as error:
        raise UsageProblem(f"input.path: {config.path}: cannot be read ({error})") from error
    if not paths:
        raise UsageProblem(
            f"input.path: {config.path}: no such file, folder or match; correct the path"
        )
    files: list[InputFile] = []
    for path in sorted(paths):
        detected = _format_of(path)
        if config.format != "auto":
            detected = "jsonl" if config.format == "openai_batch" else config.format
        if detected is not None:
            files.append(InputFile(len(files), path, detected))
    if not files:
        endings = ", ".join(ending for known in FORMATS.values() for ending in known)
        raise UsageProblem(
            f"input.path: {config.path}: no file ends in {endings}; rename it or set input.format"
        )
    return files


def _list(fs: AbstractFileSystem, root: str) -> list[str]:
    if re.search(r"[*?\[]", root):
        return [p for p in fs.glob(root) if fs.isfile(p)]
    if fs.isdir(root):
        below = (p.removeprefix(root) for p in fs.find(root))
        return [root + p for p in below if not re.search(r"/[._]", p)]
    return [root] if fs.isfile(root) else []


def _format_of(path: str) -> str | None:
    for ending in _COMPRESSED:
        path = path.removesuffix(ending)
    for name, endings in FORMATS.items():
        if path.lower().endswith(endings):
            return name
    return None


def file_version(file: InputFile, fs: AbstractFileSystem) -> str:
    """What changes when the file does: its ETag, or its size and time of change."""
    info = fs.info(file.path)
    stamp = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("updated")
    return f"{file.path} {info.get('size')} {stamp}"


def plan_blocks(
    files: Sequence[InputFile], fs: AbstractFileSystem, block_rows: int | None = None
) -> list[Block]:
    """Cut every file into blocks.

    Without `block_rows` a block holds a twelfth of the rows, between 32 and 2,048 of
    them and at most 4 MiB: small enough that engines start at once, little is lost to a kill
    and many fit in memory; large enough that moving blocks costs little.

    Raises:
        UsageProblem: a file cannot be read, naming it.
    """
    blocks: list[Block] = []
    try:
        if block_rows is None:
            block_rows = _fitting_rows([_estimate(file, fs) for file in files])
        for file in files:
            blocks += _plan_file(file, fs, block_rows)
    except UsageProblem:
        raise
    # Decompressors and drivers raise errors of their own kinds.
    except Exception as error:
        raise UsageProblem(f"input.path: a file cannot be read ({error})") from error
    return blocks


def _plan_file(file: InputFile, fs: AbstractFileSystem, rows: int) -> Iterator[Block]:
    if file.format == "parquet":
        return _parquet_blocks(file, fs, rows)
    if file.seekable:
        return _line_blocks(file, fs, rows)
    return _counted_blocks(file, fs, rows)


def _fitting_rows(estimates: Sequence[tuple[int, int]]) -> int:
    rows = sum(rows for rows, _ in estimates)
    row_bytes = max(sum(size for _, size in estimates) // max(rows, 1), 1)
    wanted = min(max(rows // _BLOCKS_WANTED, _SMALLEST_BLOCK), _LARGEST_BLOCK)
    return max(min(wanted, _LARGEST_BLOCK_BYTES // row_bytes), 1)


def _estimate(file: InputFile, fs: AbstractFileSystem) -> tuple[int, int]:
    """About how many rows a file has, and how many bytes they take when they are read."""
    if file.format == "parquet":
        with fs.open(file.path, "rb") as source:
            meta = pq.read_metadata(source)
        groups = range(meta.num_row_groups)
        return meta.num_rows, sum(meta.row_group(i).total_byte_size for i in groups)
    with fs.open(file.path, "rb", compression="infer") as source:
        head = source.read(1 << 20)
    lines = head.count(b"\n") or 1
    expansion = 4 if file.path.endswith(_COMPRESSED) else 1
    size = int(fs.size(file.path)) * expansion
    return max(size * lines // max(len(head), 1), lines), size


def _parquet_blocks(file: InputFile, fs: AbstractFileSystem, rows: int) -> Iterator[Block]:
    with fs.open(file.path, "rb") as source:
        meta = pq.read_metadata(source)
    number = first = 0
    for group in range(meta.num_row_groups):
        size = meta.row_group(group).num_rows
        for skip in range(0, size, rows):
            count = min(rows, size - skip)
            yield Block(_block_name(file, number), file, first, count, group, skip)
            number, first = number + 1, first + count


def _line_blocks(file: InputFile, fs: AbstractFileSystem, rows: int) -> Iterator[Block]:
    number = first = start = count = 0
    end = 0
    for end in _line_ends(file, fs):
        count += 1
        if count == rows:
            yield Block(
                _block_name(file, number), file, first, count, start=start, length=end - start
            )
            number, first, start, count = number + 1, first + count, end, 0
    if count:
        yield Block(_block_name(file, number), file, first, count, start=start, length=end - start)


def _line_ends(file: InputFile, fs: AbstractFileSystem) -> Iterator[int]:
    """The byte after each line that is not blank."""
    position = 0
    rest = b""
    with fs.open(file.path, "rb") as source:
        while chunk := source.read(_SCAN_CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                position += len(line) + 1
                if not _is_blank(line):
                    yield position
    if not _is_blank(rest):
        yield position + len(rest)


def _counted_blocks(file: InputFile, fs: AbstractFileSystem, rows: int) -> Iterator[Block]:
    total = sum(1 for _ in _records(file, fs))
    for number, first in enumerate(range(0, total, rows)):
        yield Block(_block_name(file, number), file, first, min(rows, total - first))


def _block_name(file: InputFile, number: int) -> str:
    return f"{file.number:05d}-{number:06d}"


def _is_blank(line: bytes) -> bool:
    return line in (b"", b"\r")


Row = dict[str, Any] | BadLine


def read_rows(block: Block, fs: AbstractFileSystem) -> list[Row]:
    """The rows of a block of a text file. A line that holds no row comes as a `BadLine`."""
    if not block.file.seekable:
        return _lines(block.file, fs).take(block.first_row, block.num_rows)
    with fs.open(block.file.path, "rb") as source:
        source.seek(block.start)
        data = source.read(block.length)
    return [parse_line(line) for line in data.split(b"\n") if not _is_blank(line)]


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


def _records(file: InputFile, fs: AbstractFileSystem) -> Iterator[Row]:
    """The rows of a text file from its start."""
    with fs.open(file.path, "rb", compression="infer") as source:
        if file.format == "csv":
            yield from _csv_records(source)
        else:
            yield from (parse_line(line.rstrip(b"\n")) for line in source if not _is_blank(line))


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
        self._open = partial(_records, file, fs)
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
        yield from reader.iter_batches(_LARGEST_BLOCK, row_groups=[row_group])


@lru_cache(maxsize=4)
def _lines(file: InputFile, fs: AbstractFileSystem) -> _Lines:
    return _Lines(file, fs)


@lru_cache(maxsize=4)
def _row_group(file: InputFile, fs: AbstractFileSystem, row_group: int) -> _RowGroup:
    return _RowGroup(file, fs, row_group)
