"""The search of `tune`: which trials to run, and what to make of each."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from jobs.trial import Sample, Trial
from pipelines.errors import RunFailure
from pipelines.tier import VLLM
from pipelines.tuning import (
    Comparison,
    Schedule,
    Subject,
    Tried,
    TuningPlan,
    best_tokens,
    compare,
    run_seconds,
    schedule,
)

MOST_TOKENS = 6
NGRAM = {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4}
"""vLLM's own default asks for five tokens in a row, which short answers rarely repeat."""
_BATCHES = (1, 4, 16, 64)
_ROWS_PER_LANE, _FEWEST_ROWS = 8, 64
_ROUNDS = 5
_ANY_BATCH = 1 << 16
_CHANGES_ANSWERS = "changes answers: put it in engine_args yourself if you want it"

Arguments = dict[str, Any]
Attempt = tuple[str, Callable[[], None]]
Rates = dict[int, list[float]]
"""Batch size -> completion tokens a second, one figure a round."""


class Search:
    """Coordinate descent from the settings as they are: what beats them by more than noise stays.

    Where the best so far can live beside the next to try, both are measured in turns: what a
    machine does faster or slower for minutes on end is then no gain of either.

    Args:
        engine: what the user configured.
        open_trial: starts an engine with planned arguments beside those.
        sample: how many rows a trial has to measure on.
        rows: how many the whole input has: few rows weigh the tail, many the full batch.
        say: told before each trial, with the minutes that are left.
    """

    def __init__(
        self,
        engine: VLLM,
        open_trial: Callable[[Arguments], Trial],
        sample: int,
        rows: int,
        say: Callable[[str], None],
    ) -> None:
        self._engine, self._open = engine, open_trial
        self._sample, self._rows, self._say = sample, rows, say
        self.args: Arguments = {}
        self._gain = 1.0
        self._rates: Rates = {}
        self._best: Trial | None = None
        self._sizes: dict[str, int] = {}
        self.tried: list[Tried] = []

    def plan(self, subject: Subject) -> TuningPlan:
        return TuningPlan(subject, self.args, self._gain, self.tried)

    def run(self) -> None:
        """Raises: RunFailure if the engine does not start with the settings as they are."""
        try:
            self._search()
        finally:
            self._close_best()

    def _search(self) -> None:
        began = time.monotonic()
        self._say("settings as they are: the engine starts")
        self._start_with_the_settings_as_they_are()
        trials = [*self._speculations(), *self._size_changes()]
        for number, (name, attempt) in enumerate(trials):
            spent = time.monotonic() - began
            left = spent / (number + 1) * (len(trials) - number) / 60
            self._say(f"trial {number + 1} of {len(trials)}, about {left:.0f} min left: {name}")
            try:
                attempt()
            # A setting that an engine does not start with has lost; the search goes on.
            except RunFailure as failure:
                self.tried.append(Tried(name, {}, 0.0, 0.0, 0.0, False, f"failed: {failure}"))

    def _start_with_the_settings_as_they_are(self) -> None:
        self._best = trial = self._open({})
        self._sizes = trial.sizes
        self._rates = {size: [] for size in self._batches()}
        for round_ in range(_ROUNDS):
            for size in self._rates:
                self._rates[size].append(self._rate(trial, size, round_))
        same = Comparison(1.0, 0.0)
        self.tried.append(_tried("settings as they are", {}, self._rates, same, taken=True))
        if not trial.leaves_room:
            self._close_best()

    def _close_best(self) -> None:
        if self._best:
            self._best.close()
            self._best = None

    def _reference(self, size: int, round_: int) -> float:
        """The rate of the best so far: now, if its engine lives, or as it was."""
        if self._best:
            return self._rate(self._best, size, round_)
        return self._rates[size][round_]

    def _speculations(self) -> Iterator[Attempt]:
        if "speculative_config" in self._engine.engine_args:
            return
        if self._engine.draft_model:
            draft = {"method": "draft_model", "model": self._engine.draft_model}
            yield "draft model", partial(self._speculate, draft)
        yield "ngram", partial(self._speculate, NGRAM)

    def _speculate(self, method: Arguments) -> None:
        """Measure all numbers of tokens at all batch sizes in one engine; take the best table."""
        sizes = self._batches()
        rates: dict[int, Rates] = {s: {n: [] for n in range(MOST_TOKENS + 1)} for s in sizes}
        reference: Rates = {size: [] for size in sizes}
        trial = self._open({**self.args, **speculative(method)})
        try:
            for round_ in range(_ROUNDS):
                for size, by_tokens in rates.items():
                    reference[size].append(self._reference(size, round_))
                    for tokens, measured in by_tokens.items():
                        measured.append(self._rate(trial, size, round_, tokens))
        finally:
            trial.close()
        chosen = {size: best_tokens(by_tokens) for size, by_tokens in rates.items()}
        best = {size: by_tokens[chosen[size]] for size, by_tokens in rates.items()}
        name = f"{method['method']}, " + " ".join(f"{n}@{size}" for size, n in chosen.items())
        planned = speculative(method, schedule(chosen, max(rates)))
        comparison = compare(self._speeds(best), self._speeds(reference))
        if any(chosen.values()) and comparison.wins:
            self._take(name, planned, best, comparison)
        else:
            self._reject(name, planned, best, comparison)

    def _size_changes(self) -> Iterator[Attempt]:
        seqs, tokens = self._sizes["max_num_seqs"], self._sizes["max_num_batched_tokens"]
        changes = [
            ("max_num_seqs", 2 * seqs),
            ("max_num_seqs", seqs // 2),
            ("max_num_batched_tokens", 2 * tokens),
            ("max_num_batched_tokens", tokens // 2),
            ("enable_prefix_caching", False),
            ("kv_cache_dtype", "fp8"),
        ]
        for key, value in changes:
            if key not in self._engine.engine_args:
                yield f"{key}: {value}", partial(self._change, key, value)

    def _change(self, key: str, value: Any) -> None:
        """Measure the full batch with one argument changed."""
        name, full = f"{key}: {value}", max(self._rates)
        measured, reference = [], []
        trial = self._open({**self.args, key: value})
        try:
            for round_ in range(_ROUNDS):
                reference.append(self._reference(full, round_))
                measured.append(self._rate(trial, full, round_))
        finally:
            trial.close()
        comparison, rates = compare(measured, reference), {**self._rates, full: measured}
        if key == "kv_cache_dtype":
            self._reject(name, {key: value}, rates, comparison, _CHANGES_ANSWERS)
        elif comparison.wins:
            self._take(name, {key: value}, rates, comparison)
        else:
            self._reject(name, {key: value}, rates, comparison)

    def _batches(self) -> list[int]:
        """The sizes to measure: a few small ones and the full batch."""
        full = self._sizes["max_num_seqs"]
        return [*(size for size in _BATCHES if size < full), full]

    def _rate(self, trial: Trial, size: int, round_: int, tokens: int | None = None) -> float:
        """Tokens a second; rounds take different rows, and within one all choices the same."""
        full = size == max(self._batches())
        rows = min(max(_ROWS_PER_LANE * size, _FEWEST_ROWS), self._sample)
        rows = self._sample if full else rows
        # All rows at once where the batch is full: the engine admits what it can run.
        at_once = rows if full else size
        measured = trial.measure(Sample(at_once, round_ * rows, rows, tokens))
        if not measured.completion_tokens:
            raise RunFailure("none of the rows was answered")
        return measured.tokens_per_s

    def _speeds(self, rates: Mapping[int, list[float]]) -> list[float]:
        """How fast the whole input would go, by each round's figures."""
        rounds = (
            {size: measured[round_] for size, measured in rates.items()}
            for round_ in range(_ROUNDS)
        )
        return [1 / run_seconds(one, self._rows, 1.0) for one in rounds]

    def _take(self, name: str, args: Arguments, rates: Rates, comparison: Comparison) -> None:
        self.tried.append(_tried(name, args, rates, comparison, taken=True))
        self.args = {**self.args, **args}
        self._gain *= comparison.gain
        self._rates = rates
        if self._best:
            self._close_best()
            self._best = self._open(self.args)

    def _reject(
        self,
        name: str,
        args: Arguments,
        rates: Rates,
        comparison: Comparison,
        why: str = "no gain beyond noise",
    ) -> None:
        self.tried.append(_tried(name, args, rates, comparison, taken=False, note=why))


def _tried(
    name: str,
    args: Arguments,
    rates: Rates,
    comparison: Comparison,
    *,
    taken: bool,
    note: str = "",
) -> Tried:
    full = statistics.median(rates[max(rates)])
    return Tried(name, args, full, comparison.gain, comparison.noise, taken, note)


def speculative(method: Arguments, table: Schedule | None = None) -> Arguments:
    """Engine arguments that speculate by a table; without one, the most at any batch."""
    table = table or [[1, _ANY_BATCH, MOST_TOKENS]]
    config = {
        **method,
        "num_speculative_tokens": max(max(tokens for _, _, tokens in table), 1),
        "num_speculative_tokens_per_batch_size": table,
    }
    return {"speculative_config": config}
