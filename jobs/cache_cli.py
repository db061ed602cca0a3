"""`nightmill cache`: care of the response cache that a configuration names."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jobs.options import set_option
from pipelines.config import ResponseCacheConfig, RunConfig
from pipelines.config_file import load_config, parse_override
from pipelines.errors import RunFailure, UsageProblem

json_option = click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@click.group()
def cache() -> None:
    """Care of the response cache that CONFIG names."""


@cache.command()
@click.argument("config", type=click.Path())
@json_option
@set_option
def stats(config: str, as_json: bool, settings: tuple[str, ...]) -> None:
    """Count what the cache holds, and check every entry of it."""
    from actors.cache_check import cache_stats

    with _opened(config, settings) as (store, _):
        found = cache_stats(store)
    if as_json:
        given = {"entries": found.entries, "questions": found.questions, **asdict(found)}
        click.echo(json.dumps(given, indent=2, default=str))
        return
    _print_stats(found, Console())


@cache.command()
@click.argument("config", type=click.Path())
@click.option("--entry", metavar="KEY", help="The entry with this request_key.")
@click.option("--run", metavar="ID", help="What this run wrote.")
@click.option("--model", metavar="M", help="What this model answered.")
@click.option("--tenant", metavar="T", help="What this tenant asked.")
@click.option("--older-than", metavar="AGE", help="Entries above this age: 12h, 30d, 8w.")
@click.option("--expired", is_flag=True, help="Entries above response_cache.ttl_days.")
@click.option("--all", "everything", is_flag=True, help="All entries.")
@click.option("--dry-run", is_flag=True, help="Only count what would be removed.")
@json_option
@set_option
def purge(
    config: str,
    entry: str | None,
    run: str | None,
    model: str | None,
    tenant: str | None,
    older_than: str | None,
    expired: bool,
    everything: bool,
    dry_run: bool,
    as_json: bool,
    settings: tuple[str, ...],
) -> None:
    """Remove the entries that fulfil every given condition, with their questions."""
    from actors.cache_care import Selection
    from actors.cache_care import purge as purge_entries

    conditions = {"entry": entry, "run": run, "model": model, "tenant": tenant}
    if not (everything or expired or older_than or any(v is not None for v in conditions.values())):
        raise UsageProblem("cache purge: say what is to be removed, or --all")
    if entry is not None and not re.fullmatch("[0-9a-f]{32}", entry):
        raise UsageProblem(f"cache purge --entry: {entry!r} is no request_key of 32 hex digits")
    with _opened(config, settings) as (store, section):
        ages = [_age(older_than)] if older_than else []
        if expired:
            ages.append(_ttl(section))
        before = datetime.now(UTC) - max(ages) if ages else None
        removed = purge_entries(store, Selection(**conditions, created_before=before), dry_run)
    if as_json:
        click.echo(json.dumps({**asdict(removed), "dry_run": dry_run}, indent=2))
        return
    done = "would be removed" if dry_run else "removed"
    click.echo(f"{removed.entries:,} entries and {removed.questions:,} questions {done}")


@cache.command()
@click.argument("config", type=click.Path())
@json_option
@set_option
def compact(config: str, as_json: bool, settings: tuple[str, ...]) -> None:
    """Mend the cache, enforce its limits, merge its files and build its index anew."""
    from actors.cache_repair import compact as compact_cache

    with _opened(config, settings) as (store, section):
        done = compact_cache(store, section)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
        return
    click.echo(
        f"{done.dropped:,} damaged entries dropped, {done.brought_back:,} sound ones brought back"
    )


@contextmanager
def _opened(config: str, settings: tuple[str, ...]) -> Iterator[tuple[Any, ResponseCacheConfig]]:
    """The cache of a configuration; what its storage raises becomes the run's failure."""
    from actors.cache_store import CacheStore

    resolved = load_config(config, dict(map(parse_override, settings)), RunConfig)
    section = resolved.response_cache
    if section is None:
        raise UsageProblem(f"{config}: response_cache is not set, so there is no cache to care for")
    try:
        yield CacheStore(section, resolved.storage), section
    except (UsageProblem, RunFailure):
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailure(
            f"response cache {section.path}: {error}. If a table is damaged, "
            "`nightmill cache compact` mends it"
        ) from error


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if match is None:
        raise UsageProblem(f"cache purge --older-than: {text!r} is no age; 12h, 30d and 8w are")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


def _ttl(section: ResponseCacheConfig) -> timedelta:
    if section.ttl_days is None:
        raise UsageProblem("cache purge --expired: response_cache.ttl_days is not set")
    return timedelta(days=section.ttl_days)


def _print_stats(found: Any, out: Console) -> None:
    out.print(
        f"{found.path}: {found.entries:,} entries, {found.questions:,} questions", soft_wrap=True
    )
    if found.oldest:
        out.print(f"from {found.oldest:%Y-%m-%d %H:%M} to {found.newest:%Y-%m-%d %H:%M} UTC")
    tables = Table("table", "rows", "MiB", "versions", "index", "unindexed", "damaged")
    for table in found.tables:
        tables.add_row(
            table.name,
            f"{table.rows:,}",
            f"{table.bytes_on_disk / 2**20:,.1f}",
            str(table.versions),
            f"{table.partitions} partitions" if table.partitions else "",
            "" if table.unindexed is None else f"{table.unindexed:,}",
            "not readable" if table.damaged is None else str(table.damaged),
        )
    out.print(tables)
    for title, by in (
        ("model", found.by_model),
        ("tier", found.by_tier),
        ("tenant", found.by_tenant),
    ):
        top = sorted(by.items(), key=lambda item: -item[1])[:20]
        listed = ", ".join(f"{name or '(none)'} {count:,}" for name, count in top)
        out.print(f"by {title}: {listed}", soft_wrap=True, highlight=False)
    if found.quarantined:
        out.print(f"in quarantine: {', '.join(found.quarantined)}; `compact` sees to it")
