"""Rows of an OUTPUT that are taken up again: pending ones by a resume, failed ones by a retry.

A left-over row joins a new block, named after the one it came from, so that committing it is
like committing any other.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.blocks import Block, InputFile
from pipelines.commit import BILL_PARTS, PENDING, block_of, committed_blocks, part
from pipelines.intake import Dialect, read_again
from pipelines.schema import INTERNAL, RESULT
from pipelines.storage import Directory

_PENDING, _FAILED = "pending", "failed"
_KEPT = {"row_id", "request_key", "_block", "_request", "_shareable", "_raw"}


def is_leftover(block: Block) -> bool:
    return block.file.format in (_PENDING, _FAILED)


def pending_blocks(directory: Directory) -> list[Block]:
    """The rows that a budget left over, and followers whose leader has no full answer.

    Of committed blocks: what an unfinished one left is in its input still.
    """
    done = committed_blocks(directory)
    named = {path: block_of(path) for path in directory.parts(PENDING)}
    return [
        _block(directory, f"{name}.more", path, _PENDING)
        for path, name in named.items()
        if name in done and f"{name}.more" not in done
    ]


def forget_taken_up(directory: Directory) -> None:
    """Drop pending rows whose following block is committed."""
    done = committed_blocks(directory)
    for path in directory.parts(PENDING):
        if f"{block_of(path)}.more" in done:
            directory.remove(path)


def failed_blocks(directory: Directory) -> list[Block]:
    """The rows in `errors/`."""
    return [
        _block(directory, f"{block_of(path)}.retry", path, _FAILED)
        for path in directory.parts("errors")
    ]


def retire_failed(directory: Directory) -> None:
    """Drop failed rows whose block was tried again and committed.

    What the failed attempts cost stays on the bill, as a retry line. Safe to repeat after a
    kill: the part in `errors/` goes last.
    """
    done = committed_blocks(directory)
    for path in directory.parts("errors"):
        block = block_of(path)
        if f"{block}.retry" not in done:
            continue
        rows = directory.read_table(part("rows", block))
        failed = pc.equal(rows["status"], "error")
        bill = directory.read_table(part(BILL_PARTS, block))
        gone = pc.is_in(bill["row_id"], value_set=rows.filter(failed)["row_id"].combine_chunks())
        directory.write_table(part(BILL_PARTS, block), _as_retry(bill, gone))
        directory.write_table(part("rows", block), rows.filter(pc.invert(failed)))
        directory.remove(path)


def read_leftover(block: Block, directory: Directory, dialect: Dialect, policy: bytes) -> pa.Table:
    """The rows as they were before they were routed."""
    if block.file.format == _PENDING:
        return _read_pending(block, directory)
    errors = directory.read_table(block.file.path, ["row_id", "input"])
    rows = directory.read_table(part("rows", block_of(block.file.path)))
    rows = rows.filter(pc.equal(rows["status"], "error"))
    at = pc.index_in(rows["row_id"], value_set=errors["row_id"].combine_chunks())
    inputs = errors["input"].take(at).to_pylist()
    results = [name for name in RESULT.names if name != "row_id"]
    return read_again(rows.drop_columns(results), block.name, inputs, dialect, policy)


def _read_pending(block: Block, directory: Directory) -> pa.Table:
    table = directory.read_table(block.file.path)
    for field in [*RESULT, *INTERNAL]:
        if field.name not in _KEPT:
            nulls = pa.nulls(table.num_rows, field.type)
            table = table.set_column(table.column_names.index(field.name), field, nulls)
    at = table.column_names.index("_block")
    names = pa.array([block.name] * table.num_rows, pa.string())
    return table.set_column(at, INTERNAL.field("_block"), names)


def _as_retry(bill: pa.Table, gone: pa.ChunkedArray) -> pa.Table:
    kinds = pc.if_else(gone, "retry", bill["kind"])
    rows = pc.if_else(gone, pa.scalar(None, pa.string()), bill["row_id"])
    bill = bill.set_column(0, bill.schema.field("kind"), kinds)
    return bill.set_column(1, bill.schema.field("row_id"), rows)


def _block(directory: Directory, name: str, path: str, kind: str) -> Block:
    return Block(name, InputFile(-1, path, kind), 0, directory.num_rows(path))
