"""The price step: what each row costs, and what the baseline tier would have charged for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.cost import Usage, row_cost, token_cost
from pipelines.prices import PriceList
from pipelines.schema import money, patch

_COLUMNS = (
    "status", "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "_work",
)  # fmt: skip


@dataclass(frozen=True)
class Price:
    """What one row costs, in nano-dollars.

    Attributes:
        work: what tiers did for it, each with its `cost_nusd`; None if nobody did anything.
        baseline_nusd: what the baseline tier would have charged; None if that cannot be said.
    """

    work: list[dict[str, Any]] | None
    cost_nusd: int
    baseline_nusd: int | None


def price_row(row: Mapping[str, Any], prices: PriceList) -> Price:
    """The price of one row, by its `_COLUMNS`; see `price_rows`."""
    work = _priced(row["_work"], prices)
    return Price(work, sum(w["cost_nusd"] for w in work or ()), _baseline(row, prices))


def price_rows(table: pa.Table, prices: PriceList, run_id: str) -> pa.Table:
    """Fill cost, baseline cost, price version and run id of every row.

    A row pays for all that tiers did for it, whether its answer came of that or not; one that
    nobody worked on costs nothing. The baseline is priced for rows that were answered, from the
    tokens of their answer, cached ones included.
    """
    rows = table.select(_COLUMNS).to_pylist()
    found = [price_row(row, prices) for row in rows]
    columns = {
        "cost_usd": money([price.cost_nusd for price in found]),
        "_work": [price.work for price in found],
        "baseline_cost_usd": money([price.baseline_nusd for price in found]),
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


def _baseline(row: Mapping[str, Any], prices: PriceList) -> int | None:
    if prices.baseline is None or row["status"] != "ok":
        return None
    return token_cost(_usage_of(row), prices.baseline)


def _usage_of(counted: Mapping[str, Any]) -> Usage:
    names = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
    return Usage(*(int(counted[name] or 0) for name in names))
