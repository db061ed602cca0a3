"""Is a row like the rows that routing was calibrated on? If not, nothing was proved about it.

A row's distance is one less the mean similarity (cosine) of its nearest rows in the sample. It is
unfamiliar where it is farther than all but a share of the sample's own rows, each measured against
the others. That share is what the guard costs: about so many rows like the sample's are sent on
for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageProblem

Vectors = NDArray[np.float32]

NEIGHBOURS = 5
SHARE = 0.07
"""Measured on clinc150 by `bench.router`."""
_MOST_ROWS = 8192
_AT_ONCE = 1024


@dataclass(frozen=True)
class Familiarity:
    """A sample's unit vectors, and how far a row may be from them.

    Attributes:
        vectors: float32 of shape (sample, dimensions).
        reach: the largest familiar distance.
    """

    vectors: Vectors
    reach: float

    @staticmethod
    def fit(vectors: NDArray[Any], share: float = SHARE, seed: int = 0) -> "Familiarity":
        """Of a sample; at most 8,192 of its rows are kept, drawn by the seed.

        Raises:
            UsageProblem: too few rows to have neighbours.
        """
        if len(vectors) <= NEIGHBOURS + 1:
            raise UsageProblem(
                f"route.guard: {len(vectors)} calibration rows; {NEIGHBOURS + 2} are the least "
                "that can tell a familiar row, so draw a larger sample"
            )
        drawn = np.random.default_rng(seed).permutation(len(vectors))[:_MOST_ROWS]
        sample = np.ascontiguousarray(_unit(vectors[np.sort(drawn)]))
        own = _distances(sample, sample, skip_nearest=True)
        return Familiarity(sample, float(np.quantile(own, 1 - share)))

    def distances(self, vectors: NDArray[Any]) -> Vectors:
        """Of shape (rows,), from 0 (as close as can be) to 2."""
        return _distances(_unit(vectors), self.vectors)

    def unfamiliar(self, vectors: NDArray[Any]) -> NDArray[np.bool_]:
        """Which rows are unlike the sample: of shape (rows,)."""
        return self.distances(vectors) > self.reach

    def arrays(self) -> dict[str, NDArray[Any]]:
        """To be stored, and given to `load`."""
        return {"vectors": self.vectors, "reach": np.array(self.reach)}

    @staticmethod
    def load(arrays: Mapping[str, NDArray[Any]]) -> "Familiarity":
        return Familiarity(np.asarray(arrays["vectors"], np.float32), float(arrays["reach"]))


def _unit(vectors: NDArray[Any]) -> Vectors:
    rows = np.asarray(vectors, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _distances(rows: Vectors, sample: Vectors, skip_nearest: bool = False) -> Vectors:
    """With `skip_nearest` a row's nearest is itself, and does not count."""
    found = np.empty(len(rows), np.float32)
    most = min(NEIGHBOURS + skip_nearest, len(sample))
    for first in range(0, len(rows), _AT_ONCE):
        near = rows[first : first + _AT_ONCE] @ sample.T
        nearest = np.partition(near, len(sample) - most, axis=1)[:, -most:]
        if skip_nearest:
            nearest = np.sort(nearest, axis=1)[:, :-1]
        found[first : first + _AT_ONCE] = 1 - nearest.mean(axis=1)
    return found
