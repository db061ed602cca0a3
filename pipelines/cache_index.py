"""When the vector index of a response cache is built, extended or built anew."""

import re
from typing import Literal

EXACT_ROWS = 8192
"""Scopes up to this size are searched exactly; so is what an index lacks of bigger ones."""
PROBES = 16
"""Partitions that a search looks into. Of disturbed vectors at similarity .98 it misses < 1 %."""
_INDEX_FROM = 32_768
_ROWS_PER_PARTITION = 4096
"""What LanceDB's `optimize` leaves alone: it joins ones of 1,024 rows until they have some 25,000,
and a search then reads most of the table.
"""
_GROWTH = 4
_TAIL_SHARE = 0.05
_NAME = re.compile(r"vector_(\d+)_partitions")

IndexWork = Literal["none", "build", "extend"]


def index_work(rows: int, partitions: int, unindexed: int) -> IndexWork:
    """What the index of a table of questions needs.

    Below 32,768 rows scanning is as fast. From there on an index is built; it is extended when
    more than 8,192 rows and 5 % of the table lie outside, and built anew once the table has
    grown to four times what its partitions were made for.

    Args:
        partitions: of the present index, 0 if there is none.
    """
    if rows < _INDEX_FROM:
        return "none"
    if not partitions or rows > _GROWTH * partitions * _ROWS_PER_PARTITION:
        return "build"
    return "extend" if unindexed > max(EXACT_ROWS, _TAIL_SHARE * rows) else "none"


def wanted_partitions(rows: int) -> int:
    return max(1, rows // _ROWS_PER_PARTITION)


def index_name(partitions: int) -> str:
    """The index's name says what LanceDB does not tell: how many partitions it has."""
    return f"vector_{partitions}_partitions"


def index_partitions(name: str) -> int:
    """The partitions of an index by its name, 0 if it is none of vectors."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else 0
