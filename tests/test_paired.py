import random

import pytest

from pipelines.paired import PairedCheck, Pairs


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.5, 0.5, 0.5], "undecided"),
        ([0.9, 0.91, 0.89, 0.9], "off"),
        ([1.3, 1.31, 1.29, 1.3], "keep"),
        ([0.8, 1.2, 0.9, 1.1], "undecided"),
        ([0.8, 1.2] * 6, "keep"),
    ],
)
def test_speculation_goes_off_when_it_loses_by_more_than_noise(
    gains: list[float], verdict: str
) -> None:
    assert Pairs(tuple(gains)).verdict == verdict


def run(gain: float, steps: int, load: int = 8, noise: float = 0.02) -> PairedCheck:
    """A check over steps that take one millisecond and bring tokens by the gain."""
    check, dice = PairedCheck(), random.Random(0)
    for i in range(steps):
        tokens = 1000 * (gain if check.on else 1.0) * (1 + dice.gauss(0, noise))
        check.step(load, int(tokens), i * 1_000_000)
    return check


def test_a_loser_is_switched_off_for_good() -> None:
    check = run(gain=0.8, steps=3000)
    assert check.lost
    assert not check.on
    assert check.pairs.gain == pytest.approx(0.8, rel=0.02)


def test_a_winner_stays_on_and_is_checked_ever_more_rarely() -> None:
    check, off = PairedCheck(), []
    for i in range(20_000):
        check.step(8, 1300 if check.on else 1000, i * 1_000_000)
        off.append(not check.on)
    assert not check.lost
    assert sum(off[:4000]) > sum(off[-4000:])
    assert sum(off[:4000]) < 0.1 * 4000


def test_a_pair_at_different_loads_says_nothing() -> None:
    check, off = PairedCheck(), 0
    for i in range(5000):
        check.step(8 if check.on else 16, 800 if check.on else 1000, i * 1_000_000)
        off += not check.on
    assert not check.pairs.gains
    # A load that changes all the time must not cost a winner its gain.
    assert off < 500


def test_leaving_the_batch_sizes_in_question_puts_speculation_on_again() -> None:
    check = PairedCheck()
    for i in range(5000):
        check.step(8, 1000, i)
        if not check.on:
            break
    assert not check.on
    check.interrupt()
    assert check.on
