"""Each routing policy on a pair of models: over folds, and certified over random splits."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from actors.route_models import fit
from bench.router_pairs import Floats, Pair
from pipelines.certify import Costs, Floor, certify, threshold_grid
from pipelines.route_curve import cost_at, oracle_curve, random_curve, route_curve

PRICE_RATIO = 10.0
LEARNED = ("domain_mean", "logistic", "boosting", "forest")
BLENDS = {
    "forest_logistic": ("forest", "logistic"),
    "forest_knn_logistic": ("forest", "knn", "logistic"),
}
"""Their scores are the mean of the parts' scores, which are here anyway."""
POLICIES = (*LEARNED, "forest_logistic", "knn", "forest_knn_logistic")
FOLDS = 5
QUALITIES = (0.95, 0.99, 1.0)
POINTS = (1.0, 2.0)
FIT, CERTIFY = 0.35, 0.30
"""Of the rows of a split; the rest is the test."""
_SLOW_EVERY = 4
"""Policies with neighbours in them take a part of the splits: they are most of the time."""

Figures = dict[str, float]
_pair: list[Pair] = []


def scores_of(pair: Pair, seen: Any, asked: Any, seed: int, slow: bool) -> dict[str, Floats]:
    """Scores of rows by every policy, learned from others."""
    names = (*LEARNED, "knn") if slow else LEARNED
    scores = {
        name: fit(name, pair.rows[seen], pair.gains[seen], seed).score(pair.rows[asked])
        for name in names
    }
    for name, parts in BLENDS.items():
        if all(part in scores for part in parts):
            scores[name] = np.mean([scores[part] for part in parts], axis=0)
    return scores


def over_folds(pair: Pair) -> dict[str, Figures]:
    """Mean over the folds, each scored by what was learned from the other four."""
    found = _parallel(pair, _fold, range(FOLDS))
    hindsight = {name: _mean([at[name] for at in found]) for name in found[0]}
    honest = _parallel(pair, _honest_fold, range(FOLDS))
    measured = {
        name: {**values, **_mean([at[name] for at in honest])} for name, values in hindsight.items()
    }
    limits = {"oracle": oracle_curve, "random": random_curve}
    return {
        **measured,
        **{name: _of_curve(curve(pair.weak, pair.strong)) for name, curve in limits.items()},
    }


def over_splits(pair: Pair, splits: int) -> dict[str, Figures]:
    """Certified on random splits: mean saving on the test rows, and how often the floor broke."""
    found = _parallel(pair, _split, range(splits))
    names = dict.fromkeys(name for at in found for name in at)
    return {
        name: {
            **_mean([at[name] for at in found if name in at]),
            "splits": sum(name in at for at in found),
        }
        for name in names
    }


def _folds(rows: int) -> Any:
    return np.random.default_rng(FOLDS).permutation(rows) % FOLDS


def _fold(index: int) -> dict[str, Figures]:
    pair = _pair[0]
    fold = _folds(len(pair.weak))
    scores = scores_of(pair, fold != index, fold == index, index, slow=True)
    weak, strong = pair.weak[fold == index], pair.strong[fold == index]
    return {name: _of_curve(route_curve(score, weak, strong)) for name, score in scores.items()}


def _of_curve(curve: Any) -> Figures:
    cost = {f"cost_{100 * part:g}": curve.cost_for(part, PRICE_RATIO) for part in QUALITIES}
    calls = {f"cpt_{part}": curve.share_for(part / 100) for part in (50, 80)}
    return {"apgr": curve.apgr, **calls, **cost}


def _honest_fold(index: int) -> dict[str, Figures]:
    """Learned from three folds, thresholds from the fourth, cost and quality on the fifth."""
    pair = _pair[0]
    fold = _folds(len(pair.weak))
    chosen, test = fold == (index + 1) % FOLDS, fold == index
    scores = scores_of(pair, ~(chosen | test), chosen | test, index, slow=True)
    within = test[chosen | test]
    figures: dict[str, Figures] = {}
    for name, score in scores.items():
        curve = route_curve(score[~within], pair.weak[chosen], pair.strong[chosen])
        figures[name] = {}
        for part in QUALITIES:
            share = (curve.cost_for(part, PRICE_RATIO) - 1 / PRICE_RATIO) / (1 - 1 / PRICE_RATIO)
            sent = score[within] > np.quantile(score[~within], 1 - share)
            quality = np.where(sent, pair.strong[test], pair.weak[test]).mean()
            figures[name][f"honest_cost_{100 * part:g}"] = cost_at(sent.mean(), PRICE_RATIO)
            figures[name][f"honest_kept_{100 * part:g}"] = quality / pair.strong[test].mean()
    return figures


def _split(seed: int) -> dict[str, Figures]:
    pair = _pair[0]
    order = np.random.default_rng(seed).permutation(len(pair.weak))
    seen, asked = np.split(order, [int(FIT * len(order))])
    scores = scores_of(pair, seen, asked, seed, slow=seed % _SLOW_EVERY == 0)
    scores["random"] = np.random.default_rng(seed).random(len(asked))
    sample = np.arange(len(asked)) < int(CERTIFY * len(order))
    return {
        name: dict(_certified(score, pair.gains[asked], sample)) for name, score in scores.items()
    }


def _certified(score: Floats, gains: Floats, sample: Any) -> Iterator[tuple[str, float]]:
    """The rows to come are at hand, without their gains: they may choose the thresholds."""
    test = ~sample
    costs = Costs(kept=1 / PRICE_RATIO)
    for points in POINTS:
        found = certify(
            score[sample],
            gains[sample],
            threshold_grid(score[test]),
            Floor(points),
            costs,
            ahead=int(test.sum()),
        )
        kept = score[test] <= (-np.inf if found.threshold is None else found.threshold)
        loss = np.where(kept, gains[test], 0.0).mean()
        yield f"saving_{points:g}pt", costs.saving(kept)
        yield f"loss_{points:g}pt", 100 * loss
        yield f"broken_{points:g}pt", float(loss > Floor(points).loss)


def _mean(figures: list[Figures]) -> Figures:
    return {name: float(np.mean([at[name] for at in figures])) for name in figures[0]}


def _parallel(pair: Pair, task: Callable[[int], Any], numbers: range) -> list[Any]:
    """On all cores; learners use one thread each."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, initializer=_pair.append, initargs=(pair,)) as pool:
        return list(pool.map(task, numbers))
