"""What `nightmill plan` found, for a person."""

import math
from collections.abc import Callable, Iterator

from rich.console import Console

from jobs.forecast import RunForecast
from jobs.summary_table import Line, Look, print_lines, share_of, usd
from pipelines.forecast import Range, TierForecast


def print_forecast(found: RunForecast, title: str, console: Console) -> None:
    """The rows, each tier's work, the bill, and what the figures rest on."""
    print_lines(title, forecast_lines(found), console)


def forecast_lines(found: RunForecast) -> Iterator[Line]:
    """All of them, in order."""
    yield Line("rows", f"{found.rows:,}", f"and {found.done:,} done already" if found.done else "")
    if found.bad:
        yield Line("  bad", f"{found.bad:,}", "hold no valid request: they go to errors/", "bad")
    if found.known:
        share = share_of(found.known, found.rows)
        yield Line("  known", f"{found.known:,}", f"{share}: asked and answered in this OUTPUT")
    if found.repeats:
        share = share_of(found.repeats, found.rows)
        yield Line("  repeats", f"{found.repeats:,}", f"{share}: of other rows, at no cost")
    yield Line("requests", f"{found.requests:,}", f"{found.sampled:,} of them looked at closely")
    if found.figures.hits.high:
        yield _line("  cached", found.figures.hits, _count, "answered by the response cache")
    if found.figures.refused.high:
        yield _line("  refused", found.figures.refused, _count, "by their tier: they go to errors/")
    for name, tier in found.figures.tiers.items():
        yield _line(f"tier {name}", tier.requests, _count, "requests")
        yield from _tier_lines(tier)
    cost = found.figures.cost_usd
    yield _line("cost", cost, usd)
    if found.budget_left_usd is not None:
        yield _budget_line(cost, found.budget_left_usd, found.is_whole)
    if found.figures.baseline_usd is not None:
        which = "the rows that ask these" if found.done or found.known else "all"
        yield _line("baseline", found.figures.baseline_usd, usd, f"{which} on {found.baseline}")
    if found.saving is not None:
        yield _saved_line(found.saving, found.is_whole)
    for remark in found.remarks:
        yield Line("note", "", remark, "warn")


def _tier_lines(tier: TierForecast) -> Iterator[Line]:
    yield _line("  prompt tokens", tier.prompt_tokens, _count)
    yield _line("  completion tokens", tier.completion_tokens, _count)
    yield _line("  cost", tier.cost_usd, usd)
    if tier.hours is not None:
        yield _line("  hours", tier.hours, lambda hours: f"{hours:,.2g}")


def _budget_line(cost: Range, left_usd: float, is_whole: bool) -> Line:
    if cost.high <= left_usd and is_whole:
        return Line("budget left", usd(left_usd), "is enough", "good")
    if cost.low > left_usd:
        return Line("budget left", usd(left_usd), "ends the run before all is answered", "bad")
    return Line("budget left", usd(left_usd), "may end the run before all is answered", "warn")


def _saved_line(saving: float, is_whole: bool) -> Line:
    look: Look = "bad" if saving < 0 else "good" if is_whole else "plain"
    return Line(
        "saved", f"{100 * saving:.1f} %", "" if is_whole else "before the hours below", look
    )


def _line(name: str, amount: Range, write: Callable[[float], str], about: str = "") -> Line:
    """What is expected, and what it lies between."""
    if amount.low == amount.high:
        return Line(name, write(amount.low), about)
    value = "?" if amount.expected is None else write(amount.expected)
    between = f"at least {write(amount.low)}"
    if math.isfinite(amount.high):
        between = f"{write(amount.low)} to {write(amount.high)}"
    return Line(name, value, f"{between} {about}".strip())


def _count(amount: float) -> str:
    return f"{amount:,.0f}"
