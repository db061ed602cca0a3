"""Money in integer nano-dollars: what a row costs, and splits whose parts sum to the whole."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.prices import HourRate, TokenRate

NS_PER_HOUR = 3600 * 10**9
_MTOK = 10**6


@dataclass(frozen=True)
class Usage:
    """Tokens of one row. `prompt_tokens` includes `cached_prompt_tokens`."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0


def token_cost(usage: Usage, rate: TokenRate) -> int:
    """Nano-dollars for a row's tokens, rounded half up once, at the end."""
    fresh = usage.prompt_tokens - usage.cached_prompt_tokens
    micro = (
        fresh * rate.input
        + usage.cached_prompt_tokens * rate.cached_input
        + usage.completion_tokens * rate.output
    )
    return (2 * micro + _MTOK) // (2 * _MTOK)


def time_cost(nanoseconds: int, rate: HourRate) -> int:
    """Nano-dollars for a replica's time, rounded half up."""
    return (2 * nanoseconds * rate.nusd_per_hour + NS_PER_HOUR) // (2 * NS_PER_HOUR)


def row_cost(usage: Usage, engine_ns: int, rate: TokenRate | HourRate) -> int:
    """What one generated row pays: its tokens, or its share of the replica's time."""
    if isinstance(rate, TokenRate):
        return token_cost(usage, rate)
    return time_cost(engine_ns, rate)


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Split an integer in proportion to weights, by largest remainder: the parts sum exactly.

    Ties go to the earlier part. All weights zero: everybody gets the same.
    """
    if not weights:
        raise ValueError("nothing to split among")
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    remainders = [total * weight % whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: -remainders[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts
