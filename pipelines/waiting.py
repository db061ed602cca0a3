"""Which rows of a block a stage still has to work on."""

import pyarrow as pa
import pyarrow.compute as pc


def undecided_rows(table: pa.Table) -> list[int]:
    """Positions of rows that have neither an answer, an error nor a leader to follow."""
    return _positions(pc.and_(pc.is_null(table["status"]), pc.is_null(table["source"])))


def rows_for_tier(table: pa.Table, tier: str) -> list[int]:
    """Positions of undecided rows that are routed to a tier."""
    undecided = pc.and_(pc.is_null(table["status"]), pc.is_null(table["source"]))
    mine = pc.fill_null(pc.equal(table["tier"], tier), False)
    return _positions(pc.and_(undecided, mine))


def _positions(mask: pa.ChunkedArray) -> list[int]:
    positions: list[int] = pc.indices_nonzero(mask).to_pylist()
    return positions
