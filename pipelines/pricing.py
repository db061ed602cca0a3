"""The price step: what each row costs, and what the baseline tier would have charged for it."""

import pyarrow as pa

from pipelines.cost import Usage, row_cost, token_cost
from pipelines.prices import PriceList
from pipelines.schema import money, patch

_COLUMNS = (
    "status", "source", "tier", "prompt_tokens", "cached_prompt_tokens", "completion_tokens",
    "_engine_ns",
)  # fmt: skip


def price_rows(table: pa.Table, prices: PriceList, run_id: str) -> pa.Table:
    """Fill cost, baseline cost, price version and run id of every row.

    A row that nobody generated costs nothing. A failed row pays what its attempt took. The
    baseline is priced for rows that were answered, from the same tokens, cached ones included.
    """
    rows = table.select(_COLUMNS).to_pylist()
    columns = {
        "cost_usd": money([_cost(row, prices) for row in rows]),
        "baseline_cost_usd": money([_baseline(row, prices) for row in rows]),
        "price_version": [prices.version] * len(rows),
        "run_id": [run_id] * len(rows),
    }
    return patch(table, range(len(rows)), columns)


def usage_of(row: dict[str, object]) -> Usage:
    names = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
    return Usage(*(int(row[name] or 0) for name in names))  # type: ignore[call-overload]


def _cost(row: dict[str, object], prices: PriceList) -> int:
    generated = row["source"] == "generated" or row["_engine_ns"] is not None
    if not generated or row["tier"] is None:
        return 0
    engine_ns = int(row["_engine_ns"] or 0)  # type: ignore[call-overload]
    return row_cost(usage_of(row), engine_ns, prices.tiers[str(row["tier"])])


def _baseline(row: dict[str, object], prices: PriceList) -> int | None:
    if prices.baseline is None or row["status"] != "ok":
        return None
    return token_cost(usage_of(row), prices.baseline)
