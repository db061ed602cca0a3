"""The command line: parse, call one function, print."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape

from jobs.cache_cli import cache
from jobs.key_cli import key
from jobs.options import run_options, set_option
from pipelines.config import RunConfig
from pipelines.config_file import dump_config, load_config, parse_override
from pipelines.errors import EXIT_FAILED, EXIT_USAGE, RunFailure, UsageProblem

# What users and libraries wrote must come out as it is: `a:x:` holds no sign of anything.
out, err = Console(emoji=False), Console(stderr=True, emoji=False)


@contextmanager
def _own_terminal() -> Iterator[Console]:
    """The terminal for us alone: what libraries print while it lasts may go to a file.

    Ray prints some warnings to standard output, where the summary or its JSON belongs.
    """
    saved = os.dup(2)
    try:
        with os.fdopen(os.dup(2), "w") as stream, redirect_stdout(sys.stderr):
            yield Console(file=stream, emoji=False)
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class Problems(click.Group):
    """Turns the errors that a user can act on into one message and the right exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageProblem as problem:
            err.print(f"[red]error:[/red] {escape(str(problem))}", highlight=False, soft_wrap=True)
            sys.exit(EXIT_USAGE)
        except RunFailure as failure:
            err.print(f"[red]failed:[/red] {escape(str(failure))}", highlight=False, soft_wrap=True)
            sys.exit(EXIT_FAILED)


@click.group(cls=Problems)
@click.version_option(package_name="nightmill")
def main() -> None:
    """Answer large prompt datasets for the least money that keeps a stated quality."""


main.add_command(cache)
main.add_command(key)


def _overridden(
    config: str, settings: tuple[str, ...], given: dict[str, Any] | None = None
) -> RunConfig:
    return load_config(config, _overrides(settings, given or {}))


def _overrides(settings: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Options win over --set."""
    overrides = dict(parse_override(setting) for setting in settings)
    return overrides | {key: value for key, value in given.items() if value is not None}


@main.command()
@click.argument("config", type=click.Path())
@set_option
def check(config: str, settings: tuple[str, ...]) -> None:
    """Validate CONFIG and print it with every default written out."""
    from jobs.preflight import check_config
    from jobs.shared_operations import check_operations

    resolved = _overridden(config, settings)
    check_config(resolved, datetime.now(UTC).date())
    check_operations(resolved.serve)
    click.echo(dump_config(resolved), nl=False)


@main.command()
@click.argument("config", type=click.Path())
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@set_option
def run(
    config: str,
    input_path: str | None,
    output_path: str | None,
    budget_usd: float | None,
    as_json: bool,
    settings: tuple[str, ...],
) -> None:
    """Answer every row of the input; the same command again goes on where it stopped."""
    given = {"input.path": input_path, "output.path": output_path, "budget_usd": budget_usd}
    _run_and_report(_overridden(config, settings, given), as_json)


@main.command()
@click.argument("config", type=click.Path())
@run_options
@click.option(
    "--sample",
    type=click.IntRange(min=30),
    default=1000,
    show_default=True,
    help="Requests of the input to look at closely.",
)
@click.option(
    "--like", multiple=True, metavar="OUTPUT", help="An earlier OUTPUT with answers like these."
)
@click.option("--json", "as_json", is_flag=True, help="Print the forecast as JSON.")
@set_option
def plan(
    config: str,
    input_path: str | None,
    output_path: str | None,
    budget_usd: float | None,
    sample: int,
    like: tuple[str, ...],
    as_json: bool,
    settings: tuple[str, ...],
) -> None:
    """Forecast what `run` will answer, take and cost, and ask no tier for it."""
    from jobs.forecast import forecast_run
    from jobs.forecast_table import print_forecast

    given = {"input.path": input_path, "output.path": output_path, "budget_usd": budget_usd}
    resolved = _overridden(config, settings, given)
    with _own_terminal():
        found = forecast_run(resolved, sample, like)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        print_forecast(found, f"plan of {config}", out)


@main.command()
@click.argument("config", type=click.Path())
@click.option("--address", help="The http address of a cluster's dashboard.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the job is submitted.")
@click.option("--stop", is_flag=True, help="Stop this run's job instead.")
@run_options
@set_option
def submit(
    config: str,
    address: str | None,
    no_wait: bool,
    stop: bool,
    input_path: str | None,
    output_path: str | None,
    budget_usd: float | None,
    settings: tuple[str, ...],
) -> NoReturn:
    """Do what `run` does as a job on a Ray cluster, and follow it."""
    from jobs.submit import Submission, Submitted
    from jobs.submit_messages import follow_job, stop_job

    given = {"input.path": input_path, "output.path": output_path, "budget_usd": budget_usd}
    resolved = _overridden(config, settings, given)
    overrides = _overrides(settings, given)
    say = partial(err.print, highlight=False, soft_wrap=True, markup=False)
    run_job = Submitted(Submission(config, resolved, overrides, address), say)
    sys.exit(stop_job(run_job, say) if stop else follow_job(run_job, say, no_wait))


@main.command()
@click.argument("output", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@set_option
def retry(output: str, as_json: bool, settings: tuple[str, ...]) -> None:
    """Answer the rows in OUTPUT/errors once more, by OUTPUT/resolved.yaml and --set."""
    _run_and_report(_resolved(output, settings), as_json, retry=True)


@main.command()
@click.argument("output", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def report(output: str, as_json: bool) -> None:
    """Print what the run in OUTPUT did, and write OUTPUT/report.html anew."""
    from jobs.run_report import ended_run, write_report
    from jobs.summary_table import print_summary
    from pipelines.storage import Directory

    directory = Directory(output, _resolved(output, ()).storage)
    summary = ended_run(directory)
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=2))
    else:
        print_summary(summary, out)
    # Last: who may only read has seen what there is.
    write_report(directory, summary)


@main.command()
@click.argument("config", type=click.Path())
@click.option(
    "--rows",
    type=click.IntRange(min=2),
    default=20_000,
    show_default=True,
    help="Rows of the input to look for similar questions in.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@set_option
def calibrate(config: str, rows: int, as_json: bool, settings: tuple[str, ...]) -> None:
    """Learn the route and the response cache's evidence from rows of the input."""
    from jobs.calibrate import calibrate as calibrate_all
    from jobs.calibrate import print_calibrated

    resolved = _overridden(config, settings)
    with _own_terminal() as terminal:
        found = calibrate_all(resolved, rows, terminal.print)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, default=str))
    else:
        print_calibrated(found, out)


@main.command()
@click.argument("config", type=click.Path())
@click.option("--tier", "tiers", multiple=True, help="A tier to tune; by default all of vLLM.")
@click.option("--rows", default=1024, show_default=True, help="Rows of the input to measure on.")
@click.option("--again", is_flag=True, help="Measure even if a plan is stored.")
@click.option("--json", "as_json", is_flag=True, help="Print the plans as JSON.")
@set_option
def tune(
    config: str,
    tiers: tuple[str, ...],
    rows: int,
    again: bool,
    as_json: bool,
    settings: tuple[str, ...],
) -> None:
    """Measure engine settings on rows of the input; runs use the best from then on."""
    from jobs.tune import print_plan
    from jobs.tune import tune as tune_tiers

    plans = tune_tiers(_overridden(config, settings), tiers, rows, again, err.print)
    if as_json:
        click.echo(json.dumps({tier: asdict(plan) for tier, plan in plans.items()}, indent=2))
        return
    for tier, plan in plans.items():
        print_plan(tier, plan, out)


@main.command()
@click.argument("config", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@set_option
def distill(config: str, as_json: bool, settings: tuple[str, ...]) -> NoReturn:
    """Teach a low-bit student to answer as its teacher, and export it if that was worth it."""
    from jobs.distill import distill as distill_student
    from jobs.distill_report import print_outcome
    from pipelines.distill_config import DistillConfig

    resolved = load_config(config, dict(map(parse_override, settings)), DistillConfig)
    with _own_terminal() as terminal:
        outcome = distill_student(
            resolved, partial(terminal.print, highlight=False, soft_wrap=True)
        )
    if as_json:
        click.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        print_outcome(outcome, out)
    sys.exit(outcome.exit_code)


@main.command()
@click.argument("config", type=click.Path())
@click.option("--dry-run", is_flag=True, help="Only say what is due, and what would be removed.")
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    help="Answer no day after this one, such as 2026-01-31.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found and done as JSON.")
@set_option
def nightly(
    config: str, dry_run: bool, until: datetime | None, as_json: bool, settings: tuple[str, ...]
) -> NoReturn:
    """Answer what is due and was not answered yet, one partition after the other."""
    from jobs.nightly import nightly as answer_due
    from jobs.nightly_report import print_report

    resolved = _overridden(config, settings)
    with _own_terminal() as terminal:
        report = answer_due(
            resolved,
            lambda: datetime.now(UTC),
            until.date() if until else None,
            dry_run,
            partial(terminal.print, highlight=False, soft_wrap=True, markup=False),
            divert_stderr=True,
        )
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report, out)
    sys.exit(report.exit_code)


@main.command()
@click.argument("config", type=click.Path())
@click.option("--host", help="Where to listen; 0.0.0.0 lets other machines ask too.")
@click.option("--port", type=int, help="The port to listen on.")
@click.option("--address", help="The Ray cluster to serve on; by default this machine alone.")
@set_option
def serve(
    config: str,
    host: str | None,
    port: int | None,
    address: str | None,
    settings: tuple[str, ...],
) -> None:
    """Answer requests over HTTP, as OpenAI's API, until Ctrl-C; a SIGHUP reads CONFIG again."""
    from jobs.serve import serve_until_stopped

    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    given = {"serve.host": host, "serve.port": port}
    serve_until_stopped(partial(_overridden, config, settings, given), err.print)


def _resolved(output: str, settings: tuple[str, ...]) -> RunConfig:
    """The configuration of the run in OUTPUT."""
    file = f"{output.rstrip('/')}/resolved.yaml"
    try:
        return _overridden(file, settings, {"output.path": output})
    except UsageProblem as problem:
        if not isinstance(problem.__cause__, FileNotFoundError):
            raise
        message = f"{output}: must be the folder that a run has written to, with its resolved.yaml"
        raise UsageProblem(message) from problem


def _run_and_report(config: RunConfig, as_json: bool, retry: bool = False) -> NoReturn:
    from jobs.batch import run as run_batch
    from jobs.calibrated import ensure_calibrated
    from jobs.progress import shown_progress
    from jobs.summary_table import print_summary

    with _own_terminal() as terminal, shown_progress(terminal) as (watch, on_start):
        ensure_calibrated(config, divert_stderr=True)
        summary = run_batch(config, watch, on_start, divert_stderr=True, retry=retry)
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=2))
    else:
        print_summary(summary, out)
    sys.exit(summary.exit_code)


if __name__ == "__main__":
    main()
