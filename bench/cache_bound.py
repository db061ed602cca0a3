"""Does the bound on wrong hits hold at every moment, and how soon does a bad group close?

    python -m bench.cache_bound --json

A thousand streams of audits with wrong-hit rates from .1 % to 10 %, limit 1 %, confidence .95:
the share where the bound is never once below the true rate in 20,000 audits, and of those above
the limit that never open. Then groups at 5 %, from the start and after 500 to 20,000 clean
audits: the share that is closed within 200, and how long 2 and 3 % go unnoticed. Last, what the
promise costs: audits until a good group opens, and how often the alarm closes one for nothing.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

import click
import numpy as np

from pipelines.wrong_hits import (
    DRIFT_ALARM,
    Evidence,
    Group,
    confidence_at,
    drift_step,
    excludes,
    threshold,
)

LIMIT, CONFIDENCE, LEVELS = 0.01, 0.95, (0.98, 0.99)
STREAMS, AUDITS = 1000, 20_000
RATES = np.geomspace(0.001, 0.1, 20)
CLEAN = (500, 2000, 20_000)
BAD, WITHIN = 0.05, 200
NEVER = np.iinfo(np.int64).max


def least_audits(rate: float, confidence: float, wrong: int) -> np.ndarray:
    """For 0, 1, ... `wrong` wrong ones: the fewest audits that exclude the rate."""
    least, found = [], 0
    for count in range(wrong + 1):
        low, high = found, found + 1
        while not excludes(high, count, rate, confidence):
            low, high = high, high + 2 * (high - found)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if excludes(middle, count, rate, confidence) else (middle, high)
            )
        found = high
        least.append(high)
    return np.array(least)


def first_excluded(wrong_at: np.ndarray, rate: float, confidence: float) -> np.ndarray:
    """The audit after which each stream first excludes the rate; NEVER within AUDITS.

    Args:
        wrong_at: (streams, n), the audits that were wrong, counted from 1. With as many wrong
            ones, more audits only lower the bound: one comparison for each number of them.
    """
    begins = np.pad(wrong_at, ((0, 0), (1, 0)))[:, :-1]
    used = int((begins <= AUDITS).sum(axis=1).max())
    begins, ends = begins[:, :used], np.minimum(wrong_at[:, :used] - 1, AUDITS)
    at = np.maximum(begins, least_audits(rate, confidence, used - 1))
    return np.where(at <= ends, at, NEVER).min(axis=1)


def wrong_audits(rate: float, streams: int, dice: np.random.Generator) -> np.ndarray:
    """Wrong audits of streams at one rate, until all are past AUDITS."""
    most = int(AUDITS * rate + 10 * np.sqrt(AUDITS * rate) + 20)
    return dice.geometric(rate, (streams, most)).cumsum(axis=1)


def coverage(dice: np.random.Generator) -> dict[str, float]:
    held = kept_closed = above = 0
    at = confidence_at(0, LEVELS, CONFIDENCE)
    for rate in RATES:
        wrong_at = wrong_audits(rate, STREAMS // len(RATES), dice)
        held += int((first_excluded(wrong_at, rate, CONFIDENCE) == NEVER).sum())
        if rate > LIMIT:
            above += len(wrong_at)
            kept_closed += int((first_excluded(wrong_at, LIMIT, at) == NEVER).sum())
    return {"covered": held / STREAMS, "bad_never_opened": kept_closed / above}


def audits_to_close(clean: int, rate: float, dice: random.Random) -> int:
    """Audits that a group opened by so many clean ones needs to close, now that it is bad."""
    group = Group(Evidence.none(LEVELS).count(0, clean, 0))
    for audits in range(1, AUDITS):
        group = group.after(LEVELS[0], dice.random() < rate, LIMIT, CONFIDENCE)
        if threshold(group.evidence, LIMIT, CONFIDENCE) is None:
            return audits
    return NEVER


def closing(dice: random.Random) -> Iterator[tuple[str, dict[str, float]]]:
    for clean in CLEAN:
        took = np.array([audits_to_close(clean, BAD, dice) for _ in range(STREAMS)])
        figures = {"closed": (took <= WITHIN).mean(), "median": np.median(took)}
        yield f"after_{clean}", {k: round(float(v), 3) for k, v in figures.items()}


def slow_closing(rate: float, dice: random.Random) -> dict[str, int]:
    took = sorted(audits_to_close(CLEAN[-1], rate, dice) for _ in range(STREAMS // 5))
    return {"p50": took[len(took) // 2], "p95": took[len(took) * 95 // 100]}


def never_open(dice: np.random.Generator) -> float:
    """The share of groups that are bad from the start and open at no moment of 200 audits."""
    at = confidence_at(0, LEVELS, CONFIDENCE)
    opened = first_excluded(wrong_audits(BAD, STREAMS, dice), LIMIT, at)
    return float((opened > WITHIN).mean())


def opening(rate: float, dice: np.random.Generator) -> dict[str, float]:
    """Audits until a good group opens: the 10th, 50th and 90th of a hundred."""
    if rate == 0:
        return {"p50": float(least_audits(LIMIT, confidence_at(0, LEVELS, CONFIDENCE), 0)[0])}
    at = confidence_at(0, LEVELS, CONFIDENCE)
    opened = first_excluded(wrong_audits(rate, STREAMS, dice), LIMIT, at)
    values = np.quantile(opened, (0.1, 0.5, 0.9), method="higher")
    return {f"p{p}": float(v) for p, v in zip((10, 50, 90), values, strict=True)}


def false_alarms(rate: float, dice: np.random.Generator, audits: int = 5_000_000) -> float:
    """Alarms per 100,000 audits of a group that stays at one rate."""
    right, wrong = drift_step(False, LIMIT), drift_step(True, LIMIT)
    drift, alarms = 0.0, 0
    for gap in dice.geometric(rate, int(audits * rate)).tolist():
        drift = max(0.0, drift + (gap - 1) * right) + wrong
        if drift >= DRIFT_ALARM:
            drift, alarms = 0.0, alarms + 1
    return alarms / audits * 1e5


def measure(seed: int) -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    return {
        **coverage(dice),
        "closed_within_200": {
            "from_start": {"closed": never_open(dice)},
            **dict(closing(random.Random(seed))),
        },
        "audits_to_close_after_20000": {
            f"{rate:.0%}": slow_closing(rate, random.Random(seed)) for rate in (0.02, 0.03)
        },
        "audits_to_open": {f"{rate:.1%}": opening(rate, dice) for rate in (0, 0.001, 0.003)},
        "false_alarms_per_100k": {
            f"{rate:.1%}": round(false_alarms(rate, dice), 2) for rate in (0.001, 0.003, 0.005)
        },
    }


@click.command()
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(seed: int, as_json: bool) -> None:
    """Simulate and print the figures."""
    result = measure(seed)
    if not as_json:
        for name, value in result.items():
            click.echo(f"{name:24} {value}")
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
