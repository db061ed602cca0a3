"""Money in integer nano-dollars: what a row costs."""

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

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_prompt_tokens + other.cached_prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


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
