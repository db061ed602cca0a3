"""`nightmill tune`: measure engine settings on the user's own rows and keep the best.

Every trial is an engine in a process tree of its own. Speculation comes first, where the most is
to be won; one engine measures all numbers of tokens, because they change while it runs. Then the
sizes, each on top of what has won so far. A setting that the user gave is not tried.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.hardware import hardware
from actors.learned_policy import policy_of
from actors.router import Router
from jobs.preflight import Plan, plan_run
from jobs.trial import EngineTrial, Trial
from jobs.tuning_plans import plans_directory, tuning_subject
from jobs.tuning_search import Arguments, Search
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.intake import read_block
from pipelines.replicas import cpu_engines, fitted
from pipelines.schema import rows_at
from pipelines.storage import open_filesystem
from pipelines.tier import VLLM, Tier
from pipelines.tuning import TuningPlan, find_plan, load_plans, save_plan
from pipelines.waiting import rows_for_tier

Say = Callable[[str], None]


def tune(
    config: RunConfig, tiers: Sequence[str], rows: int, again: bool, say: Say
) -> dict[str, TuningPlan]:
    """The plan of every tier, measured unless one is stored.

    Args:
        tiers: names; every vLLM tier if there are none.
        rows: of the input, at most so many, to measure on.
        again: measure even if a plan is stored.
        say: told what goes on.

    Raises:
        UsageProblem: there is nothing to tune, or nothing to measure on.
        RunFailure: the engine does not start with the settings of the configuration.
    """
    plan = plan_run(config, datetime.now(UTC).date())
    directory = plans_directory(config)
    found = {}
    for tier in _tunable(config, tiers):
        subject = tuning_subject(plan, tier, hardware())
        stored = find_plan(load_plans(directory), subject)
        if stored is not None and not again:
            say(f"tier {tier.name}: measured before; --again measures anew")
        else:
            stored = _searched(plan, tier, rows, say).plan(subject)
            save_plan(directory, stored)
        found[tier.name] = stored
    return found


def _searched(plan: Plan, tier: Tier, rows: int, say: Say) -> Search:
    cores = len(os.sched_getaffinity(0))
    engine = fitted(tier, cpu_engines(plan.config.tiers), cores).engine
    assert isinstance(engine, VLLM)
    requests = sample_requests(plan, tier, rows)
    logs = Path(tempfile.mkdtemp(prefix="nightmill-tune-"))
    say(f"tier {tier.name}: {len(requests)} rows; the engines log to {logs}")

    def open_trial(planned: Arguments) -> Trial:
        log = logs / f"{len(list(logs.iterdir()))}.log"
        return EngineTrial(engine, plan.config.sampling.given(), planned, requests, log)

    search = Search(engine, open_trial, len(requests), plan.num_rows, say)
    search.run()
    return search


def sample_requests(plan: Plan, tier: Tier, rows: int) -> list[str]:
    """The first requests of the input that routing sends to a tier, as JSON.

    Raises:
        UsageProblem: there are none.
    """
    fs, _ = open_filesystem(plan.config.input.path, plan.config.storage)
    router = Router(policy_of(plan.route, plan.config.route, plan.route_plan))
    requests: list[str] = []
    for block in plan.blocks:
        table = router.route(read_block(block, plan.dialect, plan.schema, plan.policy, fs))
        own = rows_at(table.select(["_request"]), rows_for_tier(table, tier.name))
        requests += own["_request"].to_pylist()
        if len(requests) >= rows:
            break
    if not requests:
        raise UsageProblem(f"tiers.{tier.name}: no row of the input goes there; nothing to measure")
    return requests[:rows]


def _tunable(config: RunConfig, names: Sequence[str]) -> list[Tier]:
    known = [tier.name for tier in config.tiers if _generates(tier)]
    for name in names:
        if name not in known:
            raise UsageProblem(
                f"--tier {name}: no vLLM tier of that name that generates; there are {known}"
            )
    if not known:
        raise UsageProblem(
            "tiers: none has engine.kind: vllm and generates; there is nothing to tune"
        )
    return [config.tier(name) for name in names or known]


def _generates(tier: Tier) -> bool:
    return isinstance(tier.engine, VLLM) and tier.engine.task == "generate"


def print_plan(tier: str, plan: TuningPlan, console: Console) -> None:
    """What was tried, what won and by how much."""
    table = Table(title=f"tier {tier} on {plan.subject.hardware}", title_justify="left")
    table.add_column("tried")
    for heading in ("tokens/s", "gain", "noise"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for tried in plan.tried:
        verdict = "[green]taken[/green]" if tried.taken else tried.note
        gain = f"{tried.gain:.3f}x" if tried.tokens_per_s else ""
        noise = f"{100 * tried.noise:.1f} %" if tried.tokens_per_s else ""
        table.add_row(tried.name, f"{tried.tokens_per_s:,.1f}", gain, noise, verdict)
    console.print(table)
    if plan.engine_args:
        console.print(f"best: {plan.engine_args}, {plan.gain:.2f}x the settings as they are")
    else:
        console.print("best: the settings as they are")
