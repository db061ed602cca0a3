import numpy as np
import pytest

from pipelines.worth import advise, wilson


def pair(both: int, strong: int, weak: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, strong, weak, neither]
    return np.repeat([1.0, 0, 1, 0], counts), np.repeat([1.0, 1, 0, 0], counts)


def test_the_table_says_who_was_right() -> None:
    advice = advise(*pair(180, 60, 15, 45), price_ratio=10)
    shares = [estimate.value for estimate in advice.table]
    assert shares == pytest.approx([0.15, 0.2, 0.05, 0.6, 0.15, 0.85 * 0.9])
    assert all(e.low <= e.value <= e.high for e in advice.table)
    assert advice.gap.low > 0.05
    assert advice.verdict == "can pay"


@pytest.mark.parametrize(
    ("counts", "ratio", "verdict"),
    [
        ((180, 60, 15, 45), 10, "can pay"),
        ((100, 0, 100, 100), 10, "can pay"),
        ((150, 2, 1, 147), 10, "can pay"),
        ((50, 2900, 0, 50), 10, "cannot pay"),
        ((180, 60, 15, 45), 1.02, "cannot pay"),
        ((10, 280, 0, 10), 10, "too few rows"),
        ((30, 10, 2, 8), 10, "too few rows"),
    ],
)
def test_the_verdict(counts: tuple[int, int, int, int], ratio: float, verdict: str) -> None:
    assert advise(*pair(*counts), price_ratio=ratio).verdict == verdict


def test_an_interval_of_a_share_covers_it() -> None:
    rng = np.random.default_rng(0)
    covered = [
        low <= 0.03 <= high
        for low, high in (wilson(int(hits), 300, 0.95) for hits in rng.binomial(300, 0.03, 2000))
    ]
    assert np.mean(covered) > 0.93
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


def test_qualities_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="1 cheap and 2 strong"):
        advise([1.0], [1.0, 0.0], 10)
