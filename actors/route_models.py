"""Learned routing: how much better would the strong tier answer this row?"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actors import route_learners
from actors.route_learners import Gains, Matrix, Predict, Sample
from pipelines.errors import UsageProblem
from pipelines.route_curve import route_curve
from pipelines.route_features import FEATURES

LEARNERS: dict[str, Callable[[Sample, int], Predict]] = {
    "domain_mean": route_learners.domain_mean,
    "logistic": route_learners.logistic,
    "knn": route_learners.knn,
    "boosting": route_learners.boosting,
    "forest": route_learners.forest,
    "forest_logistic": route_learners.forest_logistic,
    "forest_knn_logistic": route_learners.forest_knn_logistic,
}
CHOICES = ("domain_mean", "logistic", "boosting", "forest", "forest_logistic")
"""What `auto` chooses from: those whose time does not grow with the sample."""

LEAST_ROWS = 30
_FOLDS = 3
_DECIMALS = 6
"""Scores are rounded, so that a last bit that differs between machines moves no row."""


class Scorer:
    """Expected gains by one learner. Immutable, and equal to another of the same arrays."""

    def __init__(self, name: str, sample: Sample, seed: int) -> None:
        self.name, self._sample, self._seed = name, sample, seed
        with _one_thread():
            self._predict = LEARNERS[name](sample, seed)

    def score(self, rows: ArrayLike) -> Gains:
        """Expected gain of the strong tier over the cheap one: of shape (rows,), about -1 to 1.

        Args:
            rows: of the sample's columns: the embedding, then `features`.
        """
        matrix = np.ascontiguousarray(rows, np.float32)
        if not len(matrix):
            return np.zeros(0)
        with _one_thread():
            scores: Gains = np.asarray(self._predict(matrix), np.float64)
        return scores.round(_DECIMALS)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """To be stored, and given to `load_scorer`: what was learned from, not what was learned.

        A pickled model would run code where it is loaded, and bind it to one version.
        """
        stored: dict[str, NDArray[Any]] = {
            "name": np.array(self.name),
            "seed": np.array(self._seed),
            "rows": self._sample.rows,
            "gains": self._sample.gains,
        }
        if self._sample.domains is not None:
            stored["domains"] = self._sample.domains
        return stored


def fit(
    name: str, rows: ArrayLike, gains: ArrayLike, seed: int, domains: ArrayLike | None = None
) -> Scorer:
    """Learn from labelled rows; the same arguments give the same scorer.

    Args:
        name: one of `LEARNERS`, or `auto`: the one whose order is best in cross-validation.
        rows: of shape (rows, dimensions + len(FEATURES)): unit embedding, then `features`.
        gains: of shape (rows,), strong quality less cheap quality, from -1 to 1.
        domains: a name for each row, for `domain_mean`; None: they are found by k-means.

    Raises:
        UsageProblem: an unknown name, or too few rows.
        ValueError: rows and gains that do not match.
    """
    sample = _sample(rows, gains, domains)
    if name == "auto":
        name = best(sample, seed)
    if name not in LEARNERS:
        known = ", ".join([*LEARNERS, "auto"])
        raise UsageProblem(f"route.model: {name}: is not known; choose one of {known}")
    return Scorer(name, sample, seed)


def load_scorer(arrays: Mapping[str, NDArray[Any]]) -> Scorer:
    """The scorer whose `arrays` these are: it is learned again, to the same scores."""
    sample = _sample(arrays["rows"], arrays["gains"], arrays.get("domains"))
    return Scorer(str(arrays["name"]), sample, int(arrays["seed"]))


def held_out_scores(
    name: str,
    rows: ArrayLike,
    gains: ArrayLike,
    seed: int,
    folds: int = _FOLDS,
    domains: ArrayLike | None = None,
) -> Gains:
    """Each row's score by a scorer that did not see it: of shape (rows,).

    Its quantiles are thresholds that a test on other rows may use.
    """
    sample = _sample(rows, gains, domains)
    return _held_out(name, sample, seed, folds)


def best(sample: Sample, seed: int) -> str:
    """The choice whose order of held-out rows wins most quality, over all shares of calls."""
    found = {name: _won(_held_out(name, sample, seed, _FOLDS), sample.gains) for name in CHOICES}
    return max(found, key=lambda name: found[name])


def _held_out(name: str, sample: Sample, seed: int, folds: int) -> Gains:
    fold = np.random.default_rng(seed).permutation(len(sample.rows)) % folds
    scores = np.empty(len(sample.rows))
    for held in range(folds):
        seen, at = fold != held, fold == held
        named = None if sample.domains is None else sample.domains[seen]
        part = Sample(sample.rows[seen], sample.gains[seen], named)
        scores[at] = Scorer(name, part, seed).score(sample.rows[at])
    return scores


def _won(scores: Gains, gains: Gains) -> float:
    """Quality above the cheap tier's, over all shares: as APGR, and defined without a gap too."""
    curve = route_curve(scores, np.zeros(len(gains)), gains)
    return float(np.trapezoid(curve.qualities, curve.shares))


def _sample(rows: ArrayLike, gains: ArrayLike, domains: ArrayLike | None) -> Sample:
    matrix: Matrix = np.ascontiguousarray(rows, np.float32)
    gain = np.asarray(gains, np.float64)
    if matrix.ndim != 2 or matrix.shape[1] <= len(FEATURES) or gain.shape != (len(matrix),):
        raise ValueError(f"rows {matrix.shape} and gains {gain.shape}")
    if len(matrix) < LEAST_ROWS:
        raise UsageProblem(
            f"route: {len(matrix)} labelled rows to learn from; {LEAST_ROWS} are the least, so "
            "draw a larger sample"
        )
    return Sample(matrix, gain, None if domains is None else np.asarray(domains, np.str_))


@cache
def _threads() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_thread() -> Any:
    """The threads of linear algebra and boosting spin where cores are busy, and never win."""
    # It only knows the libraries that are loaded when it is made.
    import sklearn.ensemble  # noqa: F401

    return _threads().limit(limits=1)
