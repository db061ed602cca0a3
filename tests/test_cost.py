import pytest

from pipelines.cost import NS_PER_HOUR, Usage, row_cost, time_cost, token_cost
from pipelines.prices import HourRate, TokenRate

RATE = TokenRate(input=500_000_000, cached_input=50_000_000, output=1_500_000_000)


@pytest.mark.parametrize(
    ("usage", "nusd"),
    [
        (Usage(0, 0, 0), 0),
        (Usage(1, 0, 0), 500),
        (Usage(1, 1, 0), 50),
        (Usage(0, 0, 1), 1500),
        (Usage(1_000_000, 400_000, 1_000_000), 300_000_000 + 20_000_000 + 1_500_000_000),
    ],
)
def test_tokens_are_priced_by_kind(usage: Usage, nusd: int) -> None:
    assert token_cost(usage, RATE) == nusd


def test_rounding_is_half_up_and_happens_once() -> None:
    third = TokenRate(input=500_000, cached_input=0, output=0)
    assert [token_cost(Usage(n), third) for n in (0, 1, 2, 3)] == [0, 1, 1, 2]


def test_an_hour_costs_the_hourly_rate() -> None:
    assert time_cost(NS_PER_HOUR, HourRate(3_990_000_000)) == 3_990_000_000


def test_a_row_pays_tokens_or_time() -> None:
    assert row_cost(Usage(1), 0, RATE) == 500
    assert row_cost(Usage(1), NS_PER_HOUR, HourRate(7)) == 7
