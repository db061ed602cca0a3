"""Speculation at batches of 1, 4, 16 and 64: every fixed choice, and the plan that `tune` made.

    python -m bench.speculation --json

Fixed choices are no speculation at all, and 1 to 6 tokens from the draft model or from n-grams.
All engines live at the same time, each in a process tree of its own, and take turns on the same
rows; what is compared is the median of the ratios within a turn. Regret is how far the plan is
behind the best fixed choice at a batch.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from jobs.preflight import plan_run
from jobs.trial import EngineTrial, Sample
from jobs.tune import sample_requests, tune
from jobs.tuning_search import MOST_TOKENS, NGRAM, Arguments, speculative
from pipelines.config import RunConfig

BATCHES = (1, 4, 16, 64)
OFF, TUNED = "no speculation", "tuned"
# All that `tune` would try beside speculation is given, and so not tried.
ENGINE_ARGS = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": max(BATCHES),
    "max_num_batched_tokens": 4096,
    "enable_prefix_caching": True,
    "kv_cache_dtype": "auto",
}


def config_of(rows: str, model: str, draft: str, folder: str) -> RunConfig:
    engine = {"kind": "vllm", "model": model, "draft_model": draft, "engine_args": ENGINE_ARGS}
    tier = {
        "name": "only",
        "engine": engine,
        "billing": {"kind": "provisioned", "usd_per_replica_hour": 1.0},
    }
    return RunConfig.model_validate(
        {
            "input": {"path": rows},
            "output": {"path": f"{folder}/out"},
            "tiers": [tier],
            "route": {"policy": "fixed", "tier": "only"},
            "sampling": {"temperature": 0.0, "max_tokens": 64},
            "tuning": {"path": f"{folder}/plans"},
        }
    )


@contextmanager
def engines(
    config: RunConfig, arguments: dict[str, Arguments], folder: str
) -> Iterator[dict[str, EngineTrial]]:
    """One started engine for each set of arguments."""
    plan = plan_run(config, datetime.now(UTC).date())
    requests = sample_requests(plan, config.tiers[0], 1024)
    engine: Any = config.tiers[0].engine
    started: dict[str, EngineTrial] = {}
    try:
        for number, (name, planned) in enumerate(arguments.items()):
            log = Path(folder, f"{number}.log")
            started[name] = EngineTrial(engine, config.sampling.given(), planned, requests, log)
        yield started
    finally:
        for trial in started.values():
            trial.close()


def choices(trials: dict[str, EngineTrial]) -> Iterator[tuple[str, EngineTrial, int | None]]:
    """(name, engine, held speculative tokens) of every fixed choice, then the plan."""
    yield OFF, trials[OFF], None
    for method in ("draft_model", "ngram"):
        for tokens in range(1, MOST_TOKENS + 1):
            yield f"{method} {tokens}", trials[method], tokens
    yield TUNED, trials[TUNED], None


def turn(trials: dict[str, EngineTrial], batch: int, number: int) -> dict[str, float]:
    """Tokens a second of every choice on the same rows."""
    rows = max(8 * batch, 32)
    return {
        name: trial.measure(Sample(batch, number * rows, rows, tokens)).tokens_per_s
        for name, trial, tokens in choices(trials)
    }


def ratio(turns: list[dict[str, float]], a: str, b: str) -> float:
    return statistics.median(rates[a] / rates[b] for rates in turns)


@click.command()
@click.option("--model", default="demo/models/large", show_default=True)
@click.option("--draft", default="demo/models/draft", show_default=True)
@click.option("--rows", default="demo/prompts.jsonl", show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(model: str, draft: str, rows: str, repeats: int, as_json: bool) -> None:
    """Tune, then measure the plan beside every fixed choice."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(rows, model, draft, folder)

        def say(line: str) -> None:
            click.echo(line, err=True)

        planned = tune(config, [], 1024, False, say)["only"].engine_args
        arguments = {
            OFF: {},
            "draft_model": speculative({"method": "draft_model", "model": draft}),
            "ngram": speculative(NGRAM),
            TUNED: planned,
        }
        with engines(config, arguments, folder) as trials:
            for trial in trials.values():
                trial.measure(Sample(16, 0, 64))
            turns = {b: [turn(trials, b, n) for n in range(repeats)] for b in BATCHES}
    report(turns, planned, as_json)


def report(turns: dict[int, list[dict[str, float]]], planned: Arguments, as_json: bool) -> None:
    names = list(turns[1][0])
    gains = {b: {name: ratio(turns[b], name, OFF) for name in names} for b in BATCHES}
    regrets = {}
    for batch in BATCHES:
        best = max((n for n in names if n != TUNED), key=lambda n: gains[batch][n])
        regrets[batch] = max(1 - ratio(turns[batch], TUNED, best), 0.0)
    if not as_json:
        click.echo(f"{'over no speculation':20}" + "".join(f"{f'batch {b}':>12}" for b in BATCHES))
        for name in names:
            click.echo(f"{name:20}" + "".join(f"{gains[b][name]:>11.2f}x" for b in BATCHES))
        click.echo(f"{'regret of tuned':20}" + "".join(f"{regrets[b]:>12.1%}" for b in BATCHES))
        click.echo(f"the plan: {planned or 'no speculation'}")
    result = {
        "best_gain_at_1": round(max(gains[1].values()), 3),
        "tuned_gain_at_1": round(gains[1][TUNED], 3),
        "worst_regret": round(max(regrets.values()), 3),
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
