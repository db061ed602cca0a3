import numpy as np
import pytest

from pipelines.route_features import FEATURES, features

TEXTS = [
    "What is 12 + 30?\nHow many digits?",
    "def f(x):\n    return {x: `1`}",
    "",
    "Über größe, für mich: ÄÖÜ",
    "why",
    "x" * 50_000,
]


def column(name: str, texts: list[str] = TEXTS) -> np.ndarray:
    return features(texts)[:, FEATURES.index(name)]


def test_counts_are_those_of_the_text() -> None:
    assert np.expm1(column("log_bytes")) == pytest.approx(
        [len(t.encode()) for t in TEXTS], rel=1e-3
    )
    assert np.expm1(column("log_words"))[[0, 2, 4]] == pytest.approx([5, 0, 1], rel=1e-3)
    assert np.expm1(column("log_lines"))[:3] == pytest.approx([2, 2, 1], rel=1e-3)
    assert np.expm1(column("log_numbers"))[:3] == pytest.approx([2, 1, 0], rel=1e-3)
    assert np.expm1(column("log_capitalized"))[[0, 1]] == pytest.approx([2, 0], rel=1e-3)
    assert np.expm1(column("log_sentences"))[[0, 2]] == pytest.approx([2, 0], rel=1e-3)
    assert column("share_questions")[0] == pytest.approx(2 / len(TEXTS[0]))
    assert column("share_non_ascii")[3] == pytest.approx(14 / len(TEXTS[3].encode()))
    assert column("share_spaces")[4] == 0


def test_words_are_found_by_their_beginning_whatever_their_case() -> None:
    assert np.expm1(column("log_asks_what"))[0] == pytest.approx(1)
    assert np.expm1(column("log_asks_why"))[[0, 4]] == pytest.approx([1, 1])
    assert np.expm1(column("log_asks_number"))[0] == pytest.approx(1)
    assert column("log_asks_what", ["somewhat", "WHICH one", "wh", "wha\nt"]).tolist() == [
        0,
        pytest.approx(np.log(2)),
        0,
        0,
    ]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    together = features(TEXTS)
    alone = np.concatenate([features([text]) for text in TEXTS])
    assert np.array_equal(together, alone)
    assert together.dtype == np.float32
    assert together.shape == (len(TEXTS), len(FEATURES))
    assert np.isfinite(together).all()


def test_no_texts_have_no_rows() -> None:
    assert features([]).shape == (0, len(FEATURES))


def test_text_that_is_no_unicode_is_counted_too() -> None:
    assert np.isfinite(features(["\ud800 lone"])).all()
