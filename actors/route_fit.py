"""Fitting a route to judged rows, and certifying it on others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
        held: which rows are to certify on, the others to fit on: booleans of shape (rows,).
    """

    texts: Sequence[str]
    vectors: np.ndarray
    cheap: np.ndarray
    strong: np.ndarray
    doubts: Mapping[str, np.ndarray]
    held: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        return self.strong - self.cheap

    def halves(self) -> tuple["Judged", "Judged"]:
        """To fit on, and to certify on."""
        return self._at(np.flatnonzero(~self.held)), self._at(np.flatnonzero(self.held))

    def _at(self, rows: np.ndarray) -> "Judged":
        texts = [self.texts[i] for i in rows]
        doubts = {name: doubt[rows] for name, doubt in self.doubts.items()}
        qualities = self.cheap[rows], self.strong[rows]
        return Judged(texts, self.vectors[rows], *qualities, doubts, self.held[rows])


@dataclass(frozen=True)
class Promise:
    """What is to be certified.

    Attributes:
        costs: of the rows that it is certified on.
        ahead: rows to come for which it must hold.
    """

    floor: Floor
    costs: Costs
    ahead: int


@dataclass(frozen=True)
class Fit:
    """A fitted route, of which nothing is certified yet.

    Attributes:
        learned: has no scorer where a row's score is its doubt.
        measure: that doubt's; the learner's name where there is one.
        scores: of the rows that it was fitted to, as if they were new.
        grid: the thresholds to be tried.
    """

    learned: FittedRoute
    measure: str
    scores: np.ndarray
    grid: np.ndarray

    def scores_of(self, rows: Judged) -> np.ndarray:
        """Higher where the strong tier gains more: of shape (rows,)."""
        if self.learned.scorer is None:
            return self.learned.guarded(rows.doubts[self.measure], rows.vectors)
        return self.learned.scores(rows.texts, rows.vectors)


@dataclass(frozen=True)
class Certified:
    """What a fit is worth on rows that it has not seen.

    Attributes:
        scores: of these rows.
        curve: of these rows.
    """

    fit: Fit
    certificate: Certificate
    scores: np.ndarray
    curve: RouteCurve


def fit_route(model: str, known: Judged, unfamiliar: float, seed: int) -> Fit:
    """Learn from `known`, with a guard against unlike rows.

    Args:
        model: a learner's name, or auto.
        unfamiliar: share of rows that the guard may hold back for nothing; 0 for no guard.
    """
    rows = np.hstack([known.vectors, features(known.texts)])
    scorer = fit(model, rows, known.gains, seed)
    guard = Familiarity.fit(known.vectors, unfamiliar) if unfamiliar else None
    # A scorer is surer of rows that it has learned from than of any that will come.
    scores = held_out_scores(scorer.name, rows, known.gains, seed)
    return Fit(FittedRoute(scorer, guard), scorer.name, scores, threshold_grid(scores))


def surest(known: Judged) -> str:
    """The measure of doubt that puts right answers before wrong ones best."""

    def won(measure: str) -> float:
        curve = route_curve(known.doubts[measure], known.cheap, known.strong)
        return float(np.trapezoid(curve.qualities, curve.shares))

    return max(known.doubts, key=won)


def fit_doubt(measure: str, known: Judged, unfamiliar: float = 0.0) -> Fit:
    """Thresholds of a doubt that there is nothing to learn about.

    Args:
        unfamiliar: as for `fit_route`; rows without vectors have no guard.
    """
    guard = (
        Familiarity.fit(known.vectors, unfamiliar) if unfamiliar and known.vectors.size else None
    )
    doubts = known.doubts[measure]
    told = doubts[np.isfinite(doubts)]
    return Fit(
        FittedRoute(None, guard), measure, doubts, threshold_grid(told) if len(told) else told
    )


def certified(fit: Fit, held: Judged, promise: Promise) -> Certified:
    """Test it on `held`; the guard against unlike rows is tested with it."""
    scores = fit.scores_of(held)
    found = certify(scores, held.gains, fit.grid, promise.floor, promise.costs, promise.ahead)
    return Certified(fit, found, scores, route_curve(scores, held.cheap, held.strong))


def untested(fit: Fit, held: Judged, promise: Promise) -> Certified:
    """The same without a test, and so without a certificate."""
    nothing = replace(fit, grid=fit.grid[:0])
    return replace(certified(nothing, held, promise), fit=fit)
