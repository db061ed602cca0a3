"""A run's summary for a person at a terminal."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.summary import Summary


def print_summary(summary: Summary, console: Console) -> None:
    """What a person wants to know, at a glance."""
    table = Table(title=f"run {summary.run_id}", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    table.add_row("rows", f"{summary.rows:,}", _share(summary.ok, summary.rows, "answered"))
    for source, rows in sorted(summary.by_source.items(), key=lambda item: -item[1]):
        table.add_row(f"  {source}", f"{rows:,}", _share(rows, summary.rows))
    if summary.errors:
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(summary.by_error.items()))
        table.add_row("  errors", f"[red]{summary.errors:,}[/red]", f"{kinds}; see errors/")
    if summary.pending:
        table.add_row("  pending", f"[yellow]{summary.pending:,}[/yellow]", "stopped at the budget")
    for tier, counts in summary.by_tier.items():
        detail = f"{counts['prompt_tokens'] + counts['completion_tokens']:,} tokens"
        table.add_row(
            f"tier {tier}", f"{counts['rows']:,}", f"{detail}, {_usd(counts['cost_usd'])}"
        )
    if summary.escalated:
        share = _share(summary.escalated, summary.by_source.get("generated", 0))
        table.add_row("escalated", f"{summary.escalated:,}", f"{share} of what was generated")
    if summary.fallbacks:
        table.add_row("fallbacks", f"{summary.fallbacks:,}", "answered while their tier was out")
    tokens = f"{summary.cached_prompt_tokens:,} of the prompt from the prefix cache"
    table.add_row("prompt tokens", f"{summary.prompt_tokens:,}", tokens)
    table.add_row("completion tokens", f"{summary.completion_tokens:,}", "")
    overheads = ", ".join(f"{k} {_usd(v)}" for k, v in summary.overhead_usd.items() if v)
    table.add_row("bill", _usd(summary.bill_usd), f"of which {overheads}" if overheads else "")
    if summary.baseline_usd is not None and summary.saved_usd is not None:
        table.add_row("baseline", _usd(summary.baseline_usd), f"all on {summary.baseline}")
        share = _share(summary.saved_usd, summary.baseline_usd)
        table.add_row("saved", f"[green]{_usd(summary.saved_usd)}[/green]", share)
    elif summary.baseline is not None:
        table.add_row("saved", "unknown", f"{summary.baseline} states no price per token")
    if summary.routing is not None:
        table.add_row(*_floor_line(summary.routing))
        if summary.routing["checks"]:
            table.add_row(*_checks_line(summary.routing["checks"]))
    for group in summary.cache_groups:
        table.add_row(*_cache_line(group))
    for engine in summary.engines:
        if engine.get("draft_tokens"):
            rate, length = engine["acceptance_rate"], engine["acceptance_length"]
            detail = f"of tier {engine['tier']} accepted, {length:.2f} tokens a step"
            table.add_row("speculation", f"{100 * rate:.1f} %", detail)
    start = f"{summary.rows_per_s:,.1f} rows/s, the first of them after {summary.start_s:,.1f} s"
    table.add_row("time", f"{summary.wall_s:,.1f} s", start)
    for warning in summary.warnings:
        table.add_row("[yellow]warning[/yellow]", "", escape(warning))
    table.add_row("output", "", summary.output)
    table.add_row("logs", "", summary.logs)
    console.print(table)


def _cache_line(group: dict[str, Any]) -> tuple[str, str, str]:
    found = f"{group['audited']:,} audited, {group['wrong']:,} wrong, at most"
    bound = f"{100 * group['bound']:.2g} % wrong per hit"
    state = f"{group['state']}: {found} {bound}"
    return f"similar {group['group'][:8]}", f"{group['served']:,}", state


def _floor_line(routing: dict[str, Any]) -> tuple[str, str, str]:
    floor = routing["floor"]
    if floor is None:
        cheap = f"{100 * routing['share_cheap']:.1f} % stay cheap"
        loss = f"{100 * routing['loss']:.2f} points lost, {100 * routing['loss_upper']:.2f} at most"
        return "budget", "", f"{cheap}, {loss}, on {routing['sample']:,} rows"
    promise = f"{floor['loss_points']:g} points at {100 * floor['confidence']:g} %"
    if routing["threshold"] is None:
        return "floor", "", f"nothing is certified within {promise}: all rows to the strong tier"
    saved = f"{100 * routing['saving']:.1f} % saving within {promise}"
    return "floor", "", f"certified: {saved}, on {routing['sample']:,} rows"


def _checks_line(checks: dict[str, Any]) -> tuple[str, str, str]:
    found = f"{checks['worse']:,} of them worse, a loss of {100 * checks['loss']:.2f} points"
    alarm = "; [red]the floor is in danger: no more rows stay cheap[/red]"
    return "checked", f"{checks['checked']:,}", found + (alarm if checks["in_danger"] else "")


def _usd(amount: float) -> str:
    return f"${amount:,.2f}" if abs(amount) >= 100 else f"${amount:,.6f}"


def _share(part: float, whole: float, word: str = "") -> str:
    return f"{100 * part / whole:.1f} % {word}".strip() if whole else ""
