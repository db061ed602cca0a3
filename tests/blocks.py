"""Blocks made by hand."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.schema import TRAVELLING


def block(name: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A block of these rows with one user's column; what a row leaves out is null."""
    travelling = pa.Table.from_pylist([{**row, "_block": name} for row in rows], TRAVELLING)
    return travelling.add_column(0, "note", pa.array([f"of {row['row_id']}" for row in rows]))
