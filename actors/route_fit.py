"""Fitting a route to judged rows, and certifying it on others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.learned_policy import FittedRoute
from actors.route_models import fit, held_out_scores
from pipelines.certify import Certificate, Costs, Floor, certify, threshold_grid
from pipelines.familiarity import Familiarity
from pipelines.route_curve import RouteCurve, route_curve
from pipelines.route_features import features


@dataclass(frozen=True)
class Judged:
    """Rows that both tiers answered.

    Attributes:
        vectors: of the texts: float32 of shape (rows, dimensions), each of length 1.
        cheap, strong: quality of each tier's answer, from 0 to 1: of shape (rows,).
        doubts: by measure, the cheap model's confidence in its answer, negated; infinite where
            an answer is none to be sure of. Of shape (rows,) each; empty where nobody asked.
    """

    texts: Sequence[str]
    vectors: np.ndarray
    cheap: np.ndarray
    strong: np.ndarray
    doubts: Mapping[str, np.ndarray]

    @property
    def gains(self) -> np.ndarray:
        return self.strong - self.cheap

    def at(self, rows: np.ndarray) -> "Judged":
        texts = [self.texts[i] for i in rows]
        doubts = {name: doubt[rows] for name, doubt in self.doubts.items()}
        return Judged(texts, self.vectors[rows], self.cheap[rows], self.strong[rows], doubts)

    def halves(self, seed: int) -> tuple["Judged", "Judged"]:
        """To fit on, and to certify on."""
        order = np.random.default_rng(seed).permutation(len(self.texts))
        middle = len(order) // 2
        return self.at(np.sort(order[:middle])), self.at(np.sort(order[middle:]))


@dataclass(frozen=True)
class Promise:
    """What is to be certified.

    Attributes:
        ahead: rows to come for which it must hold.
    """

    floor: Floor
    costs: Costs
    ahead: int


@dataclass(frozen=True)
class Fit:
    """A fitted route.

    Attributes:
        learned: None for a cascade, whose score is the model's own.
        scores: of the rows that it was certified on.
        grid: the thresholds that were tried.
        curve: of those rows.
    """

    learned: FittedRoute | None
    certificate: Certificate
    scores: np.ndarray
    grid: np.ndarray
    curve: RouteCurve


def fit_route(
    model: str, known: Judged, held: Judged, promise: Promise, unfamiliar: float, seed: int
) -> Fit:
    """Learn from `known`, certify on `held`; the guard against unlike rows is certified with it.

    Args:
        model: a learner's name, or auto.
        unfamiliar: share of rows that the guard may hold back for nothing; 0 for no guard.
    """
    rows = np.hstack([known.vectors, features(known.texts)])
    scorer = fit(model, rows, known.gains, seed)
    guard = Familiarity.fit(known.vectors, unfamiliar) if unfamiliar else None
    learned = FittedRoute(scorer, guard)
    # A scorer is surer of rows that it has learned from than of any that will come.
    grid = threshold_grid(held_out_scores(scorer.name, rows, known.gains, seed))
    return _certified(learned, learned.scores(held.texts, held.vectors), grid, held, promise)


def surest(known: Judged) -> str:
    """The measure of confidence that puts right answers before wrong ones best."""

    def won(measure: str) -> float:
        curve = route_curve(known.doubts[measure], known.cheap, known.strong)
        return float(np.trapezoid(curve.qualities, curve.shares))

    return max(known.doubts, key=won)


def fit_cascade(measure: str, known: Judged, held: Judged, promise: Promise) -> Fit:
    """Certify how sure the cheap model must be, by thresholds chosen on `known`."""
    doubts = known.doubts[measure]
    told = doubts[np.isfinite(doubts)]
    grid = threshold_grid(told) if len(told) else told
    return _certified(None, held.doubts[measure], grid, held, promise)


def _certified(
    learned: FittedRoute | None,
    scores: np.ndarray,
    grid: np.ndarray,
    held: Judged,
    promise: Promise,
) -> Fit:
    certificate = certify(scores, held.gains, grid, promise.floor, promise.costs, promise.ahead)
    return Fit(learned, certificate, scores, grid, route_curve(scores, held.cheap, held.strong))
