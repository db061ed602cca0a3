"""Finding the input's files and planning their blocks.

A block is the unit of reading, of flowing through the chain, and of commit. It is planned once
from the files alone, so that a run which is started again cuts its input at the same places.
"""

import re
from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipelines.blocks import COMPRESSED, Block, InputFile
from pipelines.config import Input, Storage
from pipelines.errors import UsageProblem
from pipelines.reading import is_blank, records
from pipelines.storage import open_filesystem

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
}
_SCAN_CHUNK = 1 << 20
_SMALLEST_BLOCK, _LARGEST_BLOCK = 32, 2048
_LARGEST_BLOCK_BYTES = 4 << 20
_BLOCKS_WANTED = 12


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
    for ending in COMPRESSED:
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
    expansion = 4 if file.path.endswith(COMPRESSED) else 1
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
                if not is_blank(line):
                    yield position
    if not is_blank(rest):
        yield position + len(rest)


def _counted_blocks(file: InputFile, fs: AbstractFileSystem, rows: int) -> Iterator[Block]:
    total = sum(1 for _ in records(file, fs))
    for number, first in enumerate(range(0, total, rows)):
        yield Block(_block_name(file, number), file, first, min(rows, total - first))


def _block_name(file: InputFile, number: int) -> str:
    return f"{file.number:05d}-{number:06d}"
