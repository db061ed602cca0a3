"""The price step: what each row costs, and what the baseline tier would have charged for it."""

from typing import Any

import pyarrow as pa

from pipelines.cost import Usage, row_cost, token_cost
from pipelines.prices import PriceList
from pipelines.schema import money, patch

_COLUMNS = (
    "status", "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "_work",
)  # fmt: skip


def price_rows(table: pa.Table, prices: PriceList, run_id: str) -> pa.Table:
    """Fill cost, baseline cost, price version and run id of every row.

    A row pays for all that tiers did for it, whether its answer came of that or not; one that
    nobody worked on costs nothing. The baseline is priced for rows that were answered, from the
    tokens of their answer, cached ones included.
    """
    rows = table.select(_COLUMNS).to_pylist()
    work = [_priced(row["_work"], prices) for row in rows]
    columns = {
        "cost_usd": money([sum(w["cost_nusd"] for w in done or ()) for done in work]),
        "_work": work,
        "baseline_cost_usd": money([_baseline(row, prices) for row in rows]),
        "price_version": [prices.version] * len(rows),
        "run_id": [run_id] * len(rows),
    }
    return patch(table, range(len(rows)), columns)


def _priced(work: list[dict[str, Any]] | None, prices: PriceList) -> list[dict[str, Any]] | None:
    if work is None:
        return None
    return [
        {**w, "cost_nusd": row_cost(_usage_of(w), w["engine_ns"], prices.tiers[w["tier"]])}
        for w in work
    ]


def _baseline(row: dict[str, Any], prices: PriceList) -> int | None:
    if prices.baseline is None or row["status"] != "ok":
        return None
    return token_cost(_usage_of(row), prices.baseline)


def _usage_of(counted: dict[str, Any]) -> Usage:
    names = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
    return Usage(*(int(counted[name] or 0) for name in names))
