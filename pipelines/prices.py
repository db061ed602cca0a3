"""Prices: dated token prices from the book, and the rate in force for every tier of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from pipelines.api_tier import API
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.tier import Provisioned, Serverless, Tier, TokenPrice

NUSD = 10**9
"""Nano-dollars in a dollar."""


@dataclass(frozen=True)
class TokenRate:
    """Nano-dollars per million tokens, as integers, so that sums never depend on their order."""

    input: int
    cached_input: int
    output: int


@dataclass(frozen=True)
class HourRate:
    """Nano-dollars per hour that one replica exists."""

    nusd_per_hour: int


@dataclass(frozen=True)
class PriceList:
    """The rates in force for one run.

    Attributes:
        version: names the book and the day, and stands on every row.
        tiers: tier name -> what a row on it pays.
        baseline: what the baseline tier charges per token; None if no saving can be stated.
    """

    version: str
    tiers: Mapping[str, TokenRate | HourRate]
    baseline: TokenRate | None


class BookEntry(BaseModel):
    """One model's price from one day on, in US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    start: date = Field(alias="from")
    input: NonNegativeFloat
    output: NonNegativeFloat
    cached_input: NonNegativeFloat | None = None
    batch_input: NonNegativeFloat | None = None
    batch_output: NonNegativeFloat | None = None
    source: str


class PriceBook(BaseModel):
    """Dated prices. The newest entry that has begun is in force."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    models: list[BookEntry]

    def price(self, model: str, day: date, batch: bool = False) -> TokenPrice:
        """The price in force on a day.

        Args:
            batch: the one for rows of a provider's batches.

        Raises:
            UsageProblem: the model is unknown, had no price yet or has none for batches; never
                a price of zero.
        """
        known = [entry for entry in self.models if entry.model == model]
        if not known:
            names = ", ".join(sorted({entry.model for entry in self.models}))
            raise UsageProblem(f"no price for model {model!r}; the book knows: {names}")
        begun = [entry for entry in known if entry.start <= day]
        if not begun:
            first = min(entry.start for entry in known)
            raise UsageProblem(f"model {model!r} has no price before {first}")
        entry = max(begun, key=lambda e: e.start)
        if batch:
            return _batch_price(entry)
        return TokenPrice(input=entry.input, output=entry.output, cached_input=entry.cached_input)


def _batch_price(entry: BookEntry) -> TokenPrice:
    """What a batch's cached tokens cost nobody states: they are not cheaper than others."""
    if entry.batch_input is None or entry.batch_output is None:
        raise UsageProblem(
            f"model {entry.model!r} has no batch price from {entry.start} on; add batch_input "
            "and batch_output to the book, or state billing.usd_per_mtok"
        )
    return TokenPrice(input=entry.batch_input, output=entry.batch_output)


def load_book(path: str | Path) -> PriceBook:
    """Read a price book.

    Raises:
        UsageProblem: naming the file and what is wrong in it.
    """
    try:
        return PriceBook.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UsageProblem(f"{path}: is no price book ({error})") from error


def price_list(config: RunConfig, today: date) -> PriceList:
    """Resolve the rate of every tier before anything is spent.

    Raises:
        UsageProblem: a price is unknown, naming the tier, the model and the remedy.
    """
    book = load_book(config.prices) if config.prices else None
    tiers: dict[str, TokenRate | HourRate] = {}
    for tier in config.tiers:
        if isinstance(tier.billing, Provisioned):
            tiers[tier.name] = HourRate(nano_dollars(tier.billing.usd_per_hour(tier.num_gpus)))
        else:
            try:
                tiers[tier.name] = _token_rate(_serverless_price(tier, book, today))
            except UsageProblem as problem:
                raise UsageProblem(f"tiers.{tier.name}.billing: {problem}") from problem
    version = f"{book.version if book else 'config'}@{today.isoformat()}"
    return PriceList(version, tiers, _baseline_rate(config, tiers))


def nano_dollars(usd: float) -> int:
    """Exact for every amount a person writes down: through its decimal form, not its bits."""
    return int((Decimal(str(usd)) * NUSD).to_integral_value())


def _serverless_price(tier: Tier, book: PriceBook | None, today: date) -> TokenPrice:
    billing = tier.billing
    assert isinstance(billing, Serverless)
    if billing.usd_per_mtok is not None:
        return billing.usd_per_mtok
    assert billing.price_of is not None
    if book is None:
        raise UsageProblem("price_of needs a price book; set prices: to its path")
    batch = isinstance(tier.engine, API) and tier.engine.mode == "batch"
    return book.price(billing.price_of, today, batch)


def _token_rate(price: TokenPrice) -> TokenRate:
    cached = price.input if price.cached_input is None else price.cached_input
    return TokenRate(nano_dollars(price.input), nano_dollars(cached), nano_dollars(price.output))


def _baseline_rate(
    config: RunConfig, tiers: Mapping[str, TokenRate | HourRate]
) -> TokenRate | None:
    """A provisioned tier has no price per token of its own; only a stated one can be compared."""
    if config.baseline is None:
        return None
    rate = tiers[config.baseline]
    if isinstance(rate, TokenRate):
        return rate
    billing = config.tier(config.baseline).billing
    assert isinstance(billing, Provisioned)
    equivalent = billing.equivalent_usd_per_mtok
    return _token_rate(equivalent) if equivalent else None
