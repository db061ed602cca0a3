"""Speculation at batches of 1, 4, 16 and 64: every fixed choice, and the plan that `tune` made.

    python -m bench.speculation --json

Fixed choices are no speculation at all, and 1 to 6 tokens from the draft model or from n-grams.
The plan is one that `tune` makes for a run of 24 rows, which is mostly tail. The rows are those
of the demo with the longest answers: speculation has nothing to speed up in an answer of one
token. All engines live at the same time, each in a process tree of its own that is stopped when
it is not its turn, and answer the same rows; what is compared is the median of the ratios within
a turn. Regret is how far the
plan is behind the best fixed choice at a batch.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import click

from jobs.trial import EngineTrial, Sample, Trial
from jobs.tuning_search import MOST_TOKENS, NGRAM, Arguments, Search, speculative
from pipelines.requests import Request
from pipelines.tier import VLLM

ROWS = 256
BATCHES = (1, 4, 16, 64)
PLANNED_ROWS = 24
"""So few that every batch size weighs something; in a long run the full batch is all."""
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


def requests_of(path: str, model: str) -> list[str]:
    """The prompts whose labels have the most tokens, as requests in JSON."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokens_of(row: dict[str, Any]) -> int:
        return len(tokenizer(row["label"])["input_ids"])

    with open(path) as file:
        rows = [json.loads(line) for line in file]
    labelled = [row for row in rows if row.get("messages") and row.get("label")]
    longest = sorted(labelled, key=tokens_of, reverse=True)[:ROWS]
    return [Request(row["messages"], {"max_tokens": 64}).to_json() for row in longest]


@contextmanager
def engines(
    arguments: dict[str, Arguments], open_trial: Callable[[Arguments], Trial]
) -> Iterator[dict[str, Trial]]:
    """One started engine for each set of arguments."""
    with ExitStack() as stack:
        started = {}
        for name, planned in arguments.items():
            started[name] = open_trial(planned)
            stack.callback(started[name].close)
        yield started


def choices(trials: dict[str, Trial]) -> Iterator[tuple[str, Trial, int | None]]:
    """(name, engine, held speculative tokens) of every fixed choice, then the plan."""
    yield OFF, trials[OFF], None
    for method in ("draft_model", "ngram"):
        for tokens in range(1, MOST_TOKENS + 1):
            yield f"{method} {tokens}", trials[method], tokens
    yield TUNED, trials[TUNED], None


def turn(trials: dict[str, Trial], batch: int, number: int) -> dict[str, float]:
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
@click.option("--prompts", default="demo/prompts.jsonl", show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(model: str, draft: str, prompts: str, repeats: int, as_json: bool) -> None:
    """Tune, then measure the plan beside every fixed choice."""
    engine = VLLM(kind="vllm", model=model, draft_model=draft, engine_args=ENGINE_ARGS)
    requests = requests_of(prompts, model)
    with tempfile.TemporaryDirectory() as folder:
        logs = (Path(folder, f"{number}.log") for number in count())

        def open_trial(planned: Arguments) -> Trial:
            return EngineTrial(engine, {"temperature": 0.0}, planned, requests, next(logs))

        search = Search(engine, open_trial, ROWS, PLANNED_ROWS, partial(click.echo, err=True))
        search.run()
        for tried in search.tried:
            click.echo(f"{tried.name}: {tried.gain:.3f}x, noise {tried.noise:.3f}", err=True)
        arguments = {
            OFF: {},
            "draft_model": speculative({"method": "draft_model", "model": draft}),
            "ngram": speculative(NGRAM),
            TUNED: search.args,
        }
        with engines(arguments, open_trial) as trials:
            for trial in trials.values():
                trial.measure(Sample(16, 0, 64))
            turns = {b: [turn(trials, b, n) for n in range(repeats)] for b in BATCHES}
    report(turns, search.args, as_json)


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
