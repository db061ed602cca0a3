import io

import numpy as np
import pytest

from actors.route_learners import Sample
from actors.route_models import CHOICES, LEARNERS, best, fit, held_out_scores, load_scorer
from pipelines.errors import UsageProblem
from pipelines.route_curve import route_curve
from pipelines.route_features import FEATURES


def rows_and_gains(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eight domains around unit vectors; the strong tier gains in some, and more on long rows."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(8, 24))
    domain = rng.integers(0, 8, rows)
    vectors = centres[domain] + 0.8 * rng.normal(size=(rows, 24))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    plain = rng.normal(size=(rows, len(FEATURES)))
    up = np.clip(0.04 * domain + 0.1 * plain[:, 0], 0, 1)
    gains = (rng.random(rows) < up).astype(float)
    gains -= (rng.random(rows) < 0.05) & (gains == 0)
    return np.hstack([vectors, plain]).astype(np.float32), gains, domain.astype(str)


ROWS, GAINS, DOMAINS = rows_and_gains(900, 1)
NEW, NEW_GAINS, _ = rows_and_gains(3000, 2)


def apgr(scores: np.ndarray) -> float:
    return route_curve(scores, np.zeros(len(scores)), NEW_GAINS).apgr


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_orders_new_rows_better_than_chance(name: str) -> None:
    scorer = fit(name, ROWS, GAINS, seed=3)
    scores = scorer.score(NEW)
    assert apgr(scores) > 0.58
    assert scores.dtype == np.float64
    # An expected gain, not just an order.
    assert abs(scores.mean() - NEW_GAINS.mean()) < 0.05
    assert len(scorer.score(NEW[:0])) == 0


@pytest.mark.parametrize("name", LEARNERS)
def test_a_stored_scorer_gives_the_same_scores(name: str) -> None:
    scorer, file = fit(name, ROWS, GAINS, seed=4), io.BytesIO()
    np.savez(file, **scorer.arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        again = load_scorer(arrays)
    assert np.array_equal(scorer.score(NEW), again.score(NEW))
    assert np.array_equal(scorer.score(NEW)[7:9], again.score(NEW[7:9]))


def test_named_domains_have_their_own_means() -> None:
    scorer = fit("domain_mean", ROWS, GAINS, seed=5, domains=DOMAINS)
    means = {round(float(GAINS[name == DOMAINS].mean()), 6) for name in np.unique(DOMAINS)}
    assert set(scorer.score(NEW)) <= means
    assert np.array_equal(load_scorer(scorer.arrays()).score(NEW), scorer.score(NEW))


def test_auto_takes_the_best_of_them() -> None:
    scorer = fit("auto", ROWS[:400], GAINS[:400], seed=6)
    assert scorer.name == best(Sample(ROWS[:400], GAINS[:400]), 6)
    assert scorer.name in CHOICES
    assert load_scorer(scorer.arrays()).name == scorer.name


@pytest.mark.parametrize("name", LEARNERS)
def test_gains_that_never_differ_are_learned_as_such(name: str) -> None:
    assert fit(name, ROWS[:60], np.zeros(60), seed=7).score(NEW) == pytest.approx(0)


def test_graded_gains_are_learned_too() -> None:
    for name in ("logistic", "forest"):
        scores = fit(name, ROWS, GAINS / 2, seed=8).score(NEW)
        assert abs(scores.mean() - NEW_GAINS.mean() / 2) < 0.03


def test_a_row_is_scored_by_scorers_that_did_not_see_it() -> None:
    """A scorer with one neighbour in view of its own row would know every gain."""
    scores = held_out_scores("forest", ROWS, GAINS, seed=9)
    seen = fit("forest", ROWS, GAINS, seed=9).score(ROWS)
    assert np.corrcoef(scores, GAINS)[0, 1] < np.corrcoef(seen, GAINS)[0, 1] - 0.1


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(UsageProblem, match=r"route\.model: svm: .* forest, .* auto"):
        fit("svm", ROWS, GAINS, seed=0)
    with pytest.raises(UsageProblem, match="12 labelled rows"):
        fit("logistic", ROWS[:12], GAINS[:12], seed=0)
    with pytest.raises(ValueError, match="rows"):
        fit("logistic", ROWS, GAINS[:5], seed=0)
