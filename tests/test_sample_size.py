import numpy as np
import pytest

from pipelines.certify import Costs, Floor, certify
from pipelines.sample_size import LUCK, Enough, Prospect, Sampling, looks, prospects, why_enough
from pipelines.worth import Advice, advise

MILLION = 1_000_000


def advice(strong_only: int) -> Advice:
    """Of 300 rows; the cheap tier is right where the strong one is not alone."""
    cheap = np.repeat([0.0, 1.0], [strong_only, 300 - strong_only])
    return advise(cheap, np.ones(300), price_ratio=10)


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (100, [100]),
        (300, [300]),
        (449, [449]),
        (450, [300, 450]),
        (1000, [300, 600, 1000]),
        (1300, [300, 600, 1300]),
        (5000, [300, 600, 1200, 2400, 5000]),
    ],
)
def test_a_sample_doubles_and_makes_no_small_last_step(most: int, sizes: list[int]) -> None:
    assert looks(most) == sizes


def told(ahead: int, extra: float = 0.002, sizes: tuple[int, ...] = (1200, 2400)) -> list[Prospect]:
    """Of 600 sampled rows, half of which the route was fitted to."""
    rng = np.random.default_rng(1)
    scores = rng.random(300)
    gains = (rng.random(300) < 0.1 * scores).astype(float)
    grid, costs = np.arange(1, 21) / 20, Costs(kept=0.001, sent=np.full(300, 0.01), strong=0.01)
    return prospects(scores, gains, grid, Floor(1.0), costs, Sampling(600, ahead, extra), sizes)


def test_a_larger_sample_pays_until_it_costs_more_than_it_saves() -> None:
    many = told(MILLION)
    assert [(p.rows, p.certificate.sample) for p in many] == [(1200, 600), (2400, 1200)]
    assert 0 < many[0].certificate.saving <= many[1].certificate.saving
    assert all(p.pays for p in many)
    assert not any(p.pays for p in told(MILLION, extra=1000))
    assert not any(p.pays for p in told(700))
    assert not told(500, sizes=(1200,))[0].pays


def test_a_larger_sample_may_be_luckier() -> None:
    """Three of 150 rows are lost: two in a hundred, or by luck one."""
    gains, costs, sampling = np.zeros(150), Costs(kept=0.1), Sampling(300, MILLION, 0.1)
    gains[:3] = 1

    def certified(luck: float) -> float:
        rows, floor = np.zeros(150), Floor(1.0)
        (found,) = prospects(rows, gains, [0.0], floor, costs, sampling, [9600], luck)
        return found.certificate.saving

    assert certified(0) == 0
    assert certified(2) == pytest.approx(0.9)


def test_what_is_certified_already_is_not_worth_more_rows() -> None:
    scores = np.linspace(0, 1, 2000)
    costs, sampling = Costs(kept=0.1), Sampling(4000, MILLION, 0.1)
    (found,) = prospects(scores, np.zeros(2000), [1.0], Floor(1.0), costs, sampling, [8000])
    assert found.certificate.saving == pytest.approx(0.9)
    assert not found.pays


def test_a_sample_is_enough_when_no_larger_one_pays_or_the_pair_cannot() -> None:
    pays, does_not = told(MILLION), told(700)
    assert why_enough(advice(30), pays) is None
    assert why_enough(advice(30), [does_not[0], pays[1]]) is None
    enough = why_enough(advice(30), does_not)
    assert enough is not None
    assert enough.certifies
    assert why_enough(advice(299), pays) == Enough("this pair of tiers cannot pay", certifies=False)


def test_a_size_that_the_rows_of_the_fit_chose_does_not_spoil_the_certificate() -> None:
    """Every row stays cheap and loses a little more than the floor: each certificate is wrong."""
    floor, costs, ahead = Floor(5.0), Costs(kept=0.1), MILLION
    wrong, sizes = 0, list[int]()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        known, held = rng.random((2, 1200)) < 0.0501
        for size in (300, 600, 1200, 2400):
            gains, sampling = known[: size // 2].astype(float), Sampling(size, ahead, 0.1)
            larger = [n for n in (600, 1200, 2400) if n > size]
            rows = np.zeros(size // 2)
            likely = prospects(rows, gains, [0.0], floor, costs, sampling, larger, LUCK)
            if why_enough(advice(30), likely):
                break
        sizes.append(size)
        tested = held[: size // 2].astype(float)
        wrong += certify(np.zeros(size // 2), tested, [0.0], floor, costs).threshold is not None
    assert len(set(sizes)) > 2
    assert wrong / 400 <= 0.05
