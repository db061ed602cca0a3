"""A run's summary for a person: the lines of it, and how they look at a terminal."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.summary import Summary

Look = Literal["plain", "good", "warn", "bad"]
_COLOURS: dict[Look, str] = {"plain": "", "good": "green", "warn": "yellow", "bad": "red"}


@dataclass(frozen=True)
class Line:
    """What it is about, its figure, and what that means."""

    name: str
    value: str = ""
    detail: str = ""
    look: Look = "plain"


def print_summary(summary: Summary, console: Console) -> None:
    """What a person wants to know, at a glance."""
    print_lines(f"run {summary.run_id}", summary_lines(summary), console)


def print_lines(title: str, lines: Iterable[Line], console: Console) -> None:
    """Names, figures and what they mean, each in a column of its own."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(justify="right")
    # A path that is cut off leads nowhere.
    table.add_column(overflow="fold")
    for line in lines:
        name, value = Text(line.name), Text(line.value)
        (value if line.value else name).stylize(_COLOURS[line.look])
        table.add_row(name, value, Text(line.detail))
    console.print(table)


def summary_lines(summary: Summary) -> Iterator[Line]:
    """All of them, in order."""
    yield Line("rows", f"{summary.rows:,}", share_of(summary.ok, summary.rows, "answered"))
    for source, rows in sorted(summary.by_source.items(), key=lambda item: -item[1]):
        yield Line(f"  {source}", f"{rows:,}", share_of(rows, summary.rows))
    if summary.errors:
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(summary.by_error.items()))
        yield Line("  errors", f"{summary.errors:,}", f"{kinds}; see errors/", "bad")
    if summary.pending:
        yield Line("  pending", f"{summary.pending:,}", "stopped at the budget", "warn")
    for tier, counts in summary.by_tier.items():
        detail = f"{counts['prompt_tokens'] + counts['completion_tokens']:,} tokens"
        yield Line(f"tier {tier}", f"{counts['rows']:,}", f"{detail}, {usd(counts['cost_usd'])}")
    if summary.escalated:
        share = share_of(summary.escalated, summary.by_source.get("generated", 0))
        yield Line("escalated", f"{summary.escalated:,}", f"{share} of what was generated")
    if summary.fallbacks:
        yield Line("fallbacks", f"{summary.fallbacks:,}", "answered while their tier was out")
    tokens = f"{summary.cached_prompt_tokens:,} of the prompt from the prefix cache"
    yield Line("prompt tokens", f"{summary.prompt_tokens:,}", tokens)
    yield Line("completion tokens", f"{summary.completion_tokens:,}", "")
    overheads = ", ".join(f"{k} {usd(v)}" for k, v in summary.overhead_usd.items() if v)
    yield Line("bill", usd(summary.bill_usd), f"of which {overheads}" if overheads else "")
    if summary.baseline_usd is not None and summary.saved_usd is not None:
        yield Line("baseline", usd(summary.baseline_usd), f"all on {summary.baseline}")
        share = share_of(summary.saved_usd, summary.baseline_usd)
        yield Line("saved", usd(summary.saved_usd), share, _look_of_saving(summary.saved_usd))
    elif summary.baseline is not None:
        yield Line("saved", "unknown", f"{summary.baseline} states no price per token")
    if summary.routing is not None:
        yield _floor_line(summary.routing)
        if summary.routing["checks"]:
            yield _checks_line(summary.routing["checks"])
    yield from map(_cache_line, summary.cache_groups)
    for engine in summary.engines:
        if engine.get("draft_tokens"):
            rate, length = engine["acceptance_rate"], engine["acceptance_length"]
            detail = f"of tier {engine['tier']} accepted, {length:.2f} tokens a step"
            yield Line("speculation", f"{100 * rate:.1f} %", detail)
    start = f"{summary.rows_per_s:,.1f} rows/s, the first of them after {summary.start_s:,.1f} s"
    yield Line("time", f"{summary.wall_s:,.1f} s", start)
    for warning in summary.warnings:
        yield Line("warning", "", warning, "warn")
    yield Line("output", "", summary.output)
    yield Line("logs", "", summary.logs)


def _look_of_saving(saved_usd: float) -> Look:
    if not saved_usd:
        return "plain"
    return "good" if saved_usd > 0 else "bad"


def _cache_line(group: dict[str, Any]) -> Line:
    found = f"{group['audited']:,} audited, {group['wrong']:,} wrong, at most"
    bound = f"{100 * group['bound']:.2g} % wrong per hit"
    state = f"{group['state']}: {found} {bound}"
    return Line(f"similar {group['group'][:8]}", f"{group['served']:,}", state)


def _floor_line(routing: dict[str, Any]) -> Line:
    floor = routing["floor"]
    if floor is None:
        cheap = f"{100 * routing['share_cheap']:.1f} % stay cheap"
        loss = f"{100 * routing['loss']:.2f} points lost, {100 * routing['loss_upper']:.2f} at most"
        return Line("budget", "", f"{cheap}, {loss}, on {routing['sample']:,} rows")
    promise = f"{floor['loss_points']:g} points at {100 * floor['confidence']:g} %"
    if routing["threshold"] is None:
        nothing = f"nothing is certified within {promise}: all rows to the strong tier"
        return Line("floor", "", nothing, "warn")
    saved = f"{100 * routing['saving']:.1f} % saving within {promise}"
    return Line("floor", "", f"certified: {saved}, on {routing['sample']:,} rows", "good")


def _checks_line(checks: dict[str, Any]) -> Line:
    found = f"{checks['worse']:,} of them worse, a loss of {100 * checks['loss']:.2f} points"
    if not checks["in_danger"]:
        return Line("checked", f"{checks['checked']:,}", found)
    alarm = f"{found}; the floor is in danger: no more rows stay cheap"
    return Line("checked", f"{checks['checked']:,}", alarm, "bad")


def usd(amount: float) -> str:
    return f"${amount:,.2f}" if abs(amount) >= 100 else f"${amount:,.6f}"


def share_of(part: float, whole: float, word: str = "") -> str:
    return f"{100 * part / whole:.1f} % {word}".strip() if whole else ""
