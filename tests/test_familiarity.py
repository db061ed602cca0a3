import numpy as np
import pytest

from pipelines.errors import UsageProblem
from pipelines.familiarity import Familiarity


def cloud(centres: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Vectors scattered around some of the centres."""
    rng = np.random.default_rng(seed)
    return centres[rng.integers(0, len(centres), rows)] + 0.25 * rng.normal(size=(rows, 32))


CENTRES = np.random.default_rng(0).normal(size=(20, 32))
KNOWN, NEW = CENTRES[:10], CENTRES[10:]


def test_rows_unlike_the_sample_are_told_and_those_like_it_are_not() -> None:
    guard = Familiarity.fit(cloud(KNOWN, 1000, 1), share=0.07)
    assert guard.unfamiliar(cloud(NEW, 500, 2)).mean() > 0.95
    assert 0.03 < guard.unfamiliar(cloud(KNOWN, 2000, 3)).mean() < 0.12


def test_a_stored_guard_judges_alike() -> None:
    guard = Familiarity.fit(cloud(KNOWN, 300, 1))
    rows = cloud(CENTRES, 500, 4)
    again = Familiarity.load(guard.arrays())
    assert np.array_equal(guard.unfamiliar(rows), again.unfamiliar(rows))
    # Length says nothing.
    assert np.allclose(guard.distances(rows), guard.distances(3 * rows), atol=1e-5)


def test_a_sample_of_a_few_rows_is_refused() -> None:
    with pytest.raises(UsageProblem, match="larger sample"):
        Familiarity.fit(cloud(KNOWN, 20, 1))
