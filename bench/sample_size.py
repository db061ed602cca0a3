"""Samples that grow until more rows cannot pay, beside samples of a fixed size.

    python -m bench.sample_size --data DIR --json

DIR holds MMLU's answers of Mixtral-8x7B (cheap) and GPT-4 (strong) as the RouteLLM repository has
them. An input of so many rows is drawn from them with replacement, and routed by the mean gain of
a row's subject, learned from half of the sample and certified on the other half. A strong call
costs 1 and a cheap one 0.1; the sample's strong answers are kept, its cheap ones are what it costs.

    net       saved over the whole input, sampling paid, in % of all-strong
    rows      of the sample, on average
    broken    share of the draws in which the rest of the input lost more than the floor
"""

import csv
import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.router_pairs import STRONG, WEAK, Floats
from pipelines.certify import Certificate, Costs, Floor, certify, threshold_grid
from pipelines.sample_size import LUCK, Sampling, looks, prospects, why_enough
from pipelines.worth import advise

COSTS = Costs(kept=0.1)
POINTS = (1.0, 2.0, 4.0)
INPUTS = (3_000, 20_000, 200_000)
MOST = 10_000
FIXED = (1_000, MOST)
_PRIOR = 10.0
_FOLDS = 3

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Answers:
    """Who was right, by prompt, and the prompt's subject."""

    def __init__(self, data: Path) -> None:
        files = sorted((data / "mmlu_responses").glob("*.csv"))
        rows = [(i, row) for i, path in enumerate(files) for row in csv.DictReader(path.open())]
        self.subject = np.array([i for i, _ in rows])
        self.cheap = np.array([row[WEAK] == "True" for _, row in rows], float)
        self.strong = np.array([row[STRONG] == "True" for _, row in rows], float)
        self.gain = self.strong - self.cheap

    def learned(self, rows: Rows) -> Floats:
        """Each subject's mean gain."""
        subjects = len(np.unique(self.subject))
        counts = np.bincount(self.subject[rows], minlength=subjects)
        sums = np.bincount(self.subject[rows], self.gain[rows], minlength=subjects)
        return (sums + _PRIOR * self.gain[rows].mean()) / (counts + _PRIOR)

    def held_out(self, rows: Rows) -> Floats:
        """Scores of these rows, each learned from the others."""
        fold = np.arange(len(rows)) % _FOLDS
        scores = np.empty(len(rows))
        for i in range(_FOLDS):
            scores[fold == i] = self.learned(rows[fold != i])[self.subject[rows[fold == i]]]
        return scores


def routed(answers: Answers, size: int, points: float, sizes: list[int], seed: int) -> list[float]:
    """Rows of the sample, net saving, and whether the floor broke."""
    rows = np.random.default_rng(seed).integers(0, len(answers.gain), size)
    floor, enough = Floor(points), None
    for i, taken in enumerate(sizes):
        sample, rest = rows[:taken], rows[taken:]
        known, held = sample[::2], sample[1::2]
        scores = answers.held_out(known)
        grid, larger = threshold_grid(scores), sizes[i + 1 :]
        sampling = Sampling(taken, len(rest), 0.1)
        likely = prospects(scores, answers.gain[known], grid, floor, COSTS, sampling, larger, LUCK)
        advice = advise(answers.cheap[sample], answers.strong[sample], 10)
        if larger and (enough := why_enough(advice, likely)):
            break
    means = answers.learned(known)
    found = Certificate(None, 0.0, 0.0, 0.0, 0.0, 0)
    if enough is None or enough.certifies:
        held_scores, gains = means[answers.subject[held]], answers.gain[held]
        found = certify(held_scores, gains, grid, floor, COSTS, len(rest))
    threshold = -np.inf if found.threshold is None else found.threshold
    kept = means[answers.subject[rest]] <= threshold
    net = COSTS.saving(kept) * len(rest) - 0.1 * len(sample)
    loss = np.where(kept, answers.gain[rest], 0.0).mean()
    return [len(sample), 100 * net / size, float(loss > floor.loss)]


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--draws", default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(data: Path, draws: int, as_json: bool) -> None:
    """Measure each floor, input and way to sample."""
    answers, figures = Answers(data), []
    for points in POINTS:
        for size in INPUTS:
            for most in (*FIXED, None):
                limit = min(most or MOST, size // 2)
                sizes = [limit] if most else looks(limit)
                runs = [routed(answers, size, points, sizes, seed) for seed in range(draws)]
                rows, net, broken = np.mean(runs, axis=0).round(3).tolist()
                name = f"fixed {most}" if most else "growing"
                found = {"points": points, "input": size, "sample": name, "rows": rows}
                figures.append({**found, "net": net, "broken": broken})
                if not as_json:
                    click.echo(figures[-1])
    if as_json:
        click.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
