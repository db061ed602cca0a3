"""Is a row like the rows that routing was calibrated on? If not, nothing was proved about it.

A sample is cut into three parts. A row's distance is one less its similarity (cosine, within the
sample's main directions) to the nearest row of each part, on average: as steady as the mean over
the nearest three rows, and no sorting. A row is unfamiliar where it is farther than all but a
share of the sample's own rows, each measured against the others. That share is what the guard
costs: about so many rows like the sample's are sent on for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageProblem

Vectors = NDArray[np.float32]

SHARE = 0.07
"""Sizes and share: measured on clinc150 by `bench.router`."""
_PARTS = 3
_DIRECTIONS = 64
_MOST_ROWS = 8190
_LEAST_ROWS = 30
_AT_ONCE = 512


@dataclass(frozen=True)
class Familiarity:
    """A sample's unit vectors, and how far a row may be from them.

    Attributes:
        directions: float32 of shape (dimensions, main directions).
        sample: float32 of shape (rows, main directions), a whole number of parts.
        reach: the largest familiar distance.
    """

    directions: Vectors
    sample: Vectors
    reach: float

    @staticmethod
    def fit(vectors: NDArray[Any], share: float = SHARE, seed: int = 0) -> "Familiarity":
        """Of a sample's embeddings; at most some 8,000 of its rows are kept, drawn by the seed.

        Raises:
            UsageProblem: too few rows to tell what is like them.
        """
        if len(vectors) < _LEAST_ROWS:
            raise UsageProblem(
                f"route.guard: {len(vectors)} calibration rows; {_LEAST_ROWS} are the least that "
                "can tell a familiar row, so draw a larger sample"
            )
        directions = _main_directions(np.asarray(vectors, np.float32))
        rows = min(len(vectors), _MOST_ROWS) // _PARTS * _PARTS
        drawn = np.random.default_rng(seed).permutation(len(vectors))[:rows]
        sample = np.ascontiguousarray(_unit(vectors[drawn], directions))
        own = _distances(sample, sample, among=True)
        return Familiarity(directions, sample, float(np.quantile(own, 1 - share)))

    def distances(self, vectors: NDArray[Any]) -> Vectors:
        """Of shape (rows,), from 0 (as close as can be) to 2."""
        return _distances(_unit(vectors, self.directions), self.sample)

    def unfamiliar(self, vectors: NDArray[Any]) -> NDArray[np.bool_]:
        """Which rows are unlike the sample: of shape (rows,)."""
        return self.distances(vectors) > self.reach

    def arrays(self) -> dict[str, NDArray[Any]]:
        """To be stored, and given to `load`."""
        stored = {"directions": self.directions, "sample": self.sample}
        return {**stored, "reach": np.array(self.reach)}

    @staticmethod
    def load(arrays: Mapping[str, NDArray[Any]]) -> "Familiarity":
        return Familiarity(arrays["directions"], arrays["sample"], float(arrays["reach"]))


def _main_directions(vectors: Vectors) -> Vectors:
    """Without centring: what all rows have in common counts as well."""
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    return np.ascontiguousarray(directions[:, -_DIRECTIONS:], np.float32)


def _unit(vectors: NDArray[Any], directions: Vectors) -> Vectors:
    rows = np.asarray(vectors, np.float32) @ directions
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _distances(rows: Vectors, sample: Vectors, among: bool = False) -> Vectors:
    """With `among` the rows are the sample, and none is its own neighbour."""
    found = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), _AT_ONCE):
        near = rows[first : first + _AT_ONCE] @ sample.T
        if among:
            at = np.arange(len(near))
            near[at, first + at] = -1
        nearest = near.reshape(len(near), _PARTS, -1).max(axis=2)
        found[first : first + _AT_ONCE] = 1 - nearest.mean(axis=1)
    return found
