from datetime import date
from typing import Any

import pytest
from conftest import ROOT, MakeConfig, tier

from pipelines.errors import UsageProblem
from pipelines.prices import HourRate, PriceBook, TokenRate, load_book, nano_dollars, price_list
from pipelines.tier import TokenPrice

BOOK = PriceBook.model_validate(
    {
        "version": "test",
        "models": [
            {"model": "m", "from": "2026-03-01", "input": 2, "output": 8, "source": "here"},
            {"model": "m", "from": "2026-01-01", "input": 3, "output": 9, "source": "here"},
        ],
    }
)


@pytest.mark.parametrize(
    ("day", "price"),
    [
        (date(2026, 1, 1), (3, 9)),
        (date(2026, 2, 28), (3, 9)),
        (date(2026, 3, 1), (2, 8)),
        (date(2027, 1, 1), (2, 8)),
    ],
)
def test_the_newest_price_that_has_begun_is_in_force(day: date, price: tuple[float, float]) -> None:
    assert BOOK.price("m", day) == TokenPrice(input=price[0], output=price[1])


def test_a_day_before_every_price_is_an_error_that_names_the_model() -> None:
    with pytest.raises(UsageProblem, match="'m'"):
        BOOK.price("m", date(2025, 12, 31))


def test_an_unknown_price_is_an_error_that_names_the_model() -> None:
    """Invariant 3: never 0."""
    with pytest.raises(UsageProblem, match=r"'unheard-of'.*knows: m"):
        BOOK.price("unheard-of", date(2026, 6, 1))


def priced(make_config: MakeConfig, billing: dict[str, Any], **sections: Any) -> Any:
    config = make_config([], tiers=[{**tier("only"), "billing": billing}], **sections)
    return price_list(config, date(2026, 11, 24))


def test_an_unknown_model_stops_the_run_and_names_the_tier(make_config: MakeConfig) -> None:
    billing = {"kind": "serverless", "price_of": "unheard-of"}
    with pytest.raises(UsageProblem, match=r"tiers\.only\.billing: no price for model"):
        priced(make_config, billing, prices=str(ROOT / "configs/prices.yaml"))


def test_a_book_price_without_a_book_says_what_to_set(make_config: MakeConfig) -> None:
    with pytest.raises(UsageProblem, match="set prices"):
        priced(make_config, {"kind": "serverless", "price_of": "m"})


def test_cached_input_costs_what_input_costs_unless_stated(make_config: MakeConfig) -> None:
    billing = {"kind": "serverless", "usd_per_mtok": {"input": 0.5, "output": 1.5}}
    rate = priced(make_config, billing).tiers["only"]
    assert rate == TokenRate(input=500_000_000, cached_input=500_000_000, output=1_500_000_000)


def test_a_provisioned_tier_pays_for_all_its_gpus(make_config: MakeConfig) -> None:
    billing = {"kind": "provisioned", "usd_per_gpu_hour": 3.99, "gpus": 2}
    prices = priced(make_config, billing)
    assert prices.tiers["only"] == HourRate(7_980_000_000)
    assert prices.baseline is None, "no price per token was stated to compare with"


def test_the_gpus_that_a_tier_reserves_are_those_it_pays_for(make_config: MakeConfig) -> None:
    billing = {"kind": "provisioned", "usd_per_gpu_hour": 3.99}
    two = {**tier("only"), "billing": billing, "num_gpus": 2}
    prices = price_list(make_config([], tiers=[two]), date(2026, 11, 24))
    assert prices.tiers["only"] == HourRate(7_980_000_000)


def test_a_provisioned_baseline_is_compared_at_its_stated_equivalent(
    make_config: MakeConfig,
) -> None:
    equivalent = {"input": 0.1, "output": 0.4}
    billing = {
        "kind": "provisioned",
        "usd_per_replica_hour": 1.0,
        "equivalent_usd_per_mtok": equivalent,
    }
    assert priced(make_config, billing).baseline == TokenRate(100_000_000, 100_000_000, 400_000_000)


def test_every_entry_of_the_shipped_book_has_a_source_and_a_price() -> None:
    book = load_book(ROOT / "configs/prices.yaml")
    assert all(e.source and e.input > 0 and e.output > 0 for e in book.models)


@pytest.mark.parametrize(("usd", "nusd"), [(0.1, 10**8), (3.99, 3_990_000_000), (1e-9, 1)])
def test_written_amounts_are_exact(usd: float, nusd: int) -> None:
    assert nano_dollars(usd) == nusd
