from decimal import Decimal

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.schema import empty_columns, money, nano_dollars, patch

amounts = st.lists(st.none() | st.integers(-(10**15), 10**17), min_size=1, max_size=20)


@given(amounts)
def test_money_is_exact_both_ways(amounts: list[int | None]) -> None:
    column = money(amounts)
    assert column.to_pylist() == [None if a is None else Decimal(a).scaleb(-9) for a in amounts]
    assert nano_dollars(column).tolist() == [a or 0 for a in amounts]
    assert nano_dollars(column.slice(1)).tolist() == [a or 0 for a in amounts[1:]]


def test_a_patch_changes_the_named_rows_only() -> None:
    table = pa.table(empty_columns(4))
    table = patch(table, [1, 3], {"tier": ["a", None], "attempts": [2, 3]})
    assert table["tier"].to_pylist() == [None, "a", None, None]
    assert table["attempts"].to_pylist() == [None, 2, None, 3]
    table = patch(table, [0, 3], {"embedding": [[0.5, 1.0], [2.0]]})
    table = patch(table, [1, 3], {"embedding": [[4.0], None]})
    assert table["embedding"].to_pylist() == [[0.5, 1.0], [4.0], None, None]
    assert patch(table, [], {"tier": []}) is table
    assert patch(table, range(4), {"tier": list("wxyz")})["tier"].to_pylist() == list("wxyz")
