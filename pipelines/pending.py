"""Rows that a budget left over, and how a later start takes them up again."""

import pyarrow as pa

from pipelines.commit import PENDING, committed_blocks
from pipelines.schema import INTERNAL, RESULT
from pipelines.sources import Block, InputFile
from pipelines.storage import Directory

_FORMAT = "pending"
_KEPT = {"row_id", "request_key", *INTERNAL.names} - {"_engine_ns", "_attempt_id"}


def is_pending(block: Block) -> bool:
    return block.file.format == _FORMAT


def pending_blocks(directory: Directory) -> list[Block]:
    """The left-over rows as blocks that follow on the ones they came from."""
    done = committed_blocks(directory)
    blocks = []
    for path in directory.parts(PENDING):
        name = path.removeprefix(f"{PENDING}/part-").removesuffix(".parquet")
        following = f"{name}.more"
        if following in done:
            directory.remove(path)
            continue
        rows = directory.read_table(path, ["row_id"]).num_rows
        blocks.append(Block(following, InputFile(-1, path, _FORMAT), 0, rows))
    return blocks


def read_pending(block: Block, directory: Directory) -> pa.Table:
    """The rows as they were before they were routed."""
    table = directory.read_table(block.file.path)
    for field in [*RESULT, *INTERNAL]:
        if field.name not in _KEPT:
            nulls = pa.nulls(table.num_rows, field.type)
            table = table.set_column(table.column_names.index(field.name), field, nulls)
    at = table.column_names.index("_block")
    names = pa.array([block.name] * table.num_rows, pa.string())
    return table.set_column(at, INTERNAL.field("_block"), names)
