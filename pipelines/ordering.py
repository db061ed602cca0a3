"""`input.order: whole`: the input is sorted once, before the run, so that equal prefixes meet.

In a stream only rows that are near each other can go to the engine together. Sorted, the rows
of a prefix form blocks of their own, which go to one replica, long answers first. Rows are dealt
like cards, one hand for each replica, and the hands' blocks go out in turn: sorted as one, the
first block would have all the long answers and its replica would end last. The sorted rows lie
in the run's own state as blocks that are read instead of the input's.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain, zip_longest
from typing import Any

import pyarrow as pa

from pipelines.admission import LengthEstimates, prefix_of
from pipelines.blocks import Block, InputFile
from pipelines.commit import STATE, block_of, part
from pipelines.keys import digest
from pipelines.requests import Request
from pipelines.schema import INTERNAL
from pipelines.storage import Directory

ORDERED = "ordered"
SORT_KEYS = ("_hand", "_prefix", "_shortness", "row_id")
_COMMON = 1 / 8
"""A prefix on so many of a block's rows is worth computing once a replica."""
_FOLDER = f"{STATE}/{ORDERED}"
_DONE = f"{STATE}/ordered.done"


def with_sort_keys(table: pa.Table, defaults: Mapping[str, Any], hands: int) -> pa.Table:
    """A block with the columns that its rows are sorted by.

    Args:
        defaults: the run's sampling fields.
        hands: between which rows are dealt; those of one prefix stay together, unless they are
            so many that every replica may have some.
    """
    lengths = LengthEstimates()
    prefixes, shortness = [], []
    for text in table["_request"].to_pylist():
        request = Request.from_json(text) if text else Request([], {})
        prefixes.append(prefix_of(request))
        fields = {**defaults, **request.sampling}
        least = fields.get("min_tokens", 0)
        shortness.append(-lengths.expected(b"", fields.get("max_tokens"), least))
    rows = Counter(prefixes)
    together = {p for p in prefixes if p and rows[p] < _COMMON * table.num_rows}
    dealt = (
        prefix if prefix in together else row.encode()
        for prefix, row in zip(prefixes, table["row_id"].to_pylist(), strict=True)
    )
    numbers = [int.from_bytes(digest(card)[:4]) % hands for card in dealt]
    table = table.append_column("_hand", pa.array(numbers, pa.int64()))
    table = table.append_column("_prefix", pa.array(prefixes, pa.binary()))
    return table.append_column("_shortness", pa.array(shortness, pa.int64()))


def write_ordered(directory: Directory, number: int, table: pa.Table) -> None:
    """Keep one sorted block."""
    name = f"{ORDERED}-{number:06d}"
    named = pa.array([name] * table.num_rows, pa.string())
    table = table.drop_columns([key for key in SORT_KEYS if key != "row_id"])
    at = table.column_names.index("_block")
    directory.write_table(
        part(_FOLDER, name), table.set_column(at, INTERNAL.field("_block"), named)
    )


def order_once(directory: Directory, sort: Callable[[], None]) -> None:
    """Have the input sorted, unless an earlier start of the run has done it."""
    if directory.exists(_DONE):
        return
    for path in directory.parts(_FOLDER):
        directory.remove(path)
    sort()
    directory.write(_DONE, b"")


def ordered_blocks(directory: Directory, hands: int) -> list[Block]:
    """The sorted blocks: the first of each hand, then the second of each; none before all are."""
    paths = directory.parts(_FOLDER) if directory.exists(_DONE) else []
    size = -(-len(paths) // hands)
    turns = zip_longest(*(paths[i : i + size] for i in range(0, len(paths), size or 1)))
    return [
        Block(block_of(path), InputFile(-1, path, ORDERED), 0, directory.num_rows(path))
        for path in chain.from_iterable(turns)
        if path
    ]


def is_ordered(block: Block) -> bool:
    return block.file.format == ORDERED


def read_ordered(block: Block, directory: Directory) -> pa.Table:
    return directory.read_table(block.file.path)
