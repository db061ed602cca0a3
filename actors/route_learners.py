"""How a row's gain is learned from its embedding and features: one function a way.

Each takes a sample and returns a function from rows to expected gains. scikit-learn is imported
inside, because it takes seconds. How many neighbours, trees and so on: settled by 5-fold APGR on
the public MMLU and GSM8K answers that `bench.router` measures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.route_features import FEATURES

Matrix = NDArray[np.float32]
Gains = NDArray[np.float64]
Predict = Callable[[Matrix], Gains]

_DOMAIN_ROWS = 60
_MOST_DOMAINS = 64
_NEIGHBOURS = 100
_DIRECTIONS = 32
_TREES = 100
_LEAF_ROWS = 10


@dataclass(frozen=True)
class Sample:
    """Labelled rows.

    Attributes:
        rows: of shape (rows, dimensions + len(FEATURES)): the embedding, then the features.
        gains: of shape (rows,), strong quality less cheap quality, from -1 to 1.
        domains: of shape (rows,), a name each, or None: to be found.
    """

    rows: Matrix
    gains: Gains
    domains: NDArray[np.str_] | None = None


class Columns:
    """Embedding and features on scales that suit one another."""

    def __init__(self, rows: Matrix) -> None:
        plain = rows[:, -len(FEATURES) :].astype(np.float64)
        self._mean, deviation = plain.mean(axis=0), plain.std(axis=0)
        self._deviation = np.where(deviation > 1e-6, deviation, 1.0)

    @staticmethod
    def embedding(rows: Matrix) -> Matrix:
        return rows[:, : -len(FEATURES)]

    def side_by_side(self, rows: Matrix, embedding: float, features: float) -> Matrix:
        """Unit embeddings and standardized features, each times a weight."""
        # A prompt unlike all of the sample must not run away.
        plain = np.clip((rows[:, -len(FEATURES) :] - self._mean) / self._deviation, -4, 4)
        return np.hstack([embedding * self.embedding(rows), features * plain]).astype(np.float32)


def domain_mean(sample: Sample, seed: int) -> Predict:
    """The mean gain of the nearest domain; domains that are not named are found by k-means."""
    vectors = Columns.embedding(sample.rows)
    label = _named(sample.domains) if sample.domains is not None else _clusters(vectors, seed)
    counts = np.bincount(label)
    centres = np.stack([vectors[label == domain].mean(axis=0) for domain in range(len(counts))])
    means = np.bincount(label, weights=sample.gains) / counts
    # Nearest by distance, of which |row|^2 is the same for all.
    half = (centres**2).sum(axis=1) / 2
    return lambda rows: means[np.argmax(Columns.embedding(rows) @ centres.T - half, axis=1)]


def logistic(sample: Sample, seed: int) -> Predict:
    """P(strong better) and P(cheap better), each times how much better it is then."""
    from sklearn.linear_model import LogisticRegression

    columns, sign = Columns(sample.rows), np.sign(sample.gains).astype(np.int64)
    classes = np.unique(sign)
    worth = np.array([sample.gains[sign == value].mean() for value in classes])
    if len(classes) == 1:
        return lambda rows: np.full(len(rows), worth[0])
    model = LogisticRegression(C=0.005, max_iter=500, random_state=seed)
    model.fit(columns.side_by_side(sample.rows, 8.0, 0.5), sign)
    return lambda rows: model.predict_proba(columns.side_by_side(rows, 8.0, 0.5)) @ worth


def knn(sample: Sample, seed: int) -> Predict:  # noqa: ARG001
    """The mean gain of the nearest rows."""
    from sklearn.neighbors import KNeighborsRegressor

    columns, nearest = Columns(sample.rows), min(_NEIGHBOURS, max(1, len(sample.rows) // 5))
    model = KNeighborsRegressor(nearest, algorithm="brute")
    model.fit(columns.side_by_side(sample.rows, 1.0, 0.15), sample.gains)
    return lambda rows: model.predict(columns.side_by_side(rows, 1.0, 0.15))


def boosting(sample: Sample, seed: int) -> Predict:
    """Gradient-boosted trees on the gain."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    reduced = _reduced(sample.rows, seed)
    model = HistGradientBoostingRegressor(
        learning_rate=0.05,
        max_iter=120,
        max_leaf_nodes=8,
        min_samples_leaf=max(2, min(40, len(sample.rows) // 20)),
        max_features=0.3,
        early_stopping=False,
        random_state=seed,
    ).fit(reduced(sample.rows), sample.gains)
    return lambda rows: model.predict(reduced(rows))


def forest(sample: Sample, seed: int) -> Predict:
    """Extremely randomized trees on the gain: as good as a random forest, and faster to grow."""
    from sklearn.ensemble import ExtraTreesRegressor

    reduced = _reduced(sample.rows, seed)
    model = ExtraTreesRegressor(
        _TREES, min_samples_leaf=_LEAF_ROWS, max_features=0.4, random_state=seed
    ).fit(reduced(sample.rows), sample.gains)
    return lambda rows: model.predict(reduced(rows))


def forest_logistic(sample: Sample, seed: int) -> Predict:
    """The mean of the two, which err in different places."""
    return _mean_of(forest(sample, seed), logistic(sample, seed))


def forest_knn_logistic(sample: Sample, seed: int) -> Predict:
    """The mean of the three: the best order, at the price of looking at all of the sample."""
    parts = forest(sample, seed), knn(sample, seed), logistic(sample, seed)
    return _mean_of(*parts)


def _mean_of(*parts: Predict) -> Predict:
    return lambda rows: np.mean([part(rows) for part in parts], axis=0)


def _reduced(rows: Matrix, seed: int) -> Callable[[Matrix], Matrix]:
    """The embedding's main directions beside the features: trees look at one column at a time."""
    from sklearn.decomposition import PCA

    vectors = Columns.embedding(rows)
    directions: Any = PCA(min(_DIRECTIONS, *vectors.shape), random_state=seed).fit(vectors)

    def reduced(rows: Matrix) -> Matrix:
        main = directions.transform(Columns.embedding(rows))
        return np.hstack([main, rows[:, -len(FEATURES) :]]).astype(np.float32)

    return reduced


def _named(domains: NDArray[np.str_]) -> NDArray[np.int64]:
    _, label = np.unique(domains, return_inverse=True)
    return label


def _clusters(vectors: Matrix, seed: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    domains = min(_MOST_DOMAINS, len(vectors) // _DOMAIN_ROWS + 1)
    found = KMeans(domains, n_init=1, random_state=seed).fit_predict(vectors)
    return _named(found.astype(str))
