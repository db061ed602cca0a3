"""What a prompt looks like, in numbers: cheap enough to be computed for every row.

All texts are counted at once, byte by byte, through tables; nothing is tokenized or parsed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_CLASSES = {
    "upper": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "lower": b"abcdefghijklmnopqrstuvwxyz",
    "digits": b"0123456789",
    "spaces": b" \t",
    "newlines": b"\n",
    "stops": b".,;:!",
    "questions": b"?",
    "quotes": b"\"'`",
    "brackets": b"()[]",
    "code": b"{}_<>#;@|&~",
    "maths": b"+-*/=^%$\\",
    "non_ascii": bytes(range(128, 256)),
}
_WORDS = {
    "asks_what": ("what", "whic", "who ", "when", "wher"),
    "asks_why": ("why ", "how ", "expl", "beca", "reas", "prov"),
    "asks_number": ("many", "much", "calc", "comp", "solv", "find", "tota", "each"),
    "negates": ("not ", "exce", "fals", "leas", "neve", "inco", "none"),
    "instructs": ("writ", "list", "summ", "tran", "gene", "crea", "desc", "impl"),
}
"""Groups of words, by the first four letters: one comparison of four bytes."""

FEATURES: tuple[str, ...] = (
    "log_bytes",
    "log_words",
    "log_lines",
    "log_numbers",
    "log_capitalized",
    "log_sentences",
    "word_bytes",
    "line_bytes",
    *(f"share_{name}" for name in _CLASSES),
    *(f"log_{name}" for name in _WORDS),
)
"""The columns, in order. `log` is of 1 + the count, shares are of the text's bytes."""

_LETTERS = _CLASSES["upper"] + _CLASSES["lower"]
_MOST_BYTES = 20_000
"""Of each text; one huge prompt need not be counted to its end to be known as huge."""


def _class_table() -> NDArray[np.uint8]:
    table = np.full(256, len(_CLASSES), np.uint8)
    for index, members in enumerate(_CLASSES.values()):
        # The first class that names a byte has it.
        fresh = [byte for byte in members if table[byte] == len(_CLASSES)]
        table[fresh] = index
    return table


def _letter_table() -> NDArray[np.uint8]:
    """Lower-case letters for letters, a blank for all else."""
    table = np.full(256, ord(" "), np.uint8)
    table[list(_LETTERS)] = list(_LETTERS.lower())
    return table


_CLASS_OF, _LETTER_OF = _class_table(), _letter_table()
_KEYS = [np.frombuffer("".join(words).encode(), "<u4") for words in _WORDS.values()]


def features(texts: Sequence[str]) -> NDArray[np.float32]:
    """The features of texts: of shape (texts, len(FEATURES)), all finite."""
    if not texts:
        return np.zeros((0, len(FEATURES)), np.float32)
    coded = [text.encode("utf-8", "replace") for text in texts]
    sizes = np.array([len(code) for code in coded])
    cut = [code[:_MOST_BYTES] for code in coded]
    read = np.array([len(code) for code in cut])
    # A blank after each text keeps its last word from growing into the next one.
    joined = np.frombuffer(b" ".join(cut) + b"    ", np.uint8)
    ends = np.cumsum(read + 1)
    counts = _class_counts(joined, ends, read)
    starts, words = _word_starts(joined, ends)
    marks = _word_marks(joined, starts, ends)
    runs = np.stack([_marked(beginning, ends) for beginning in _beginnings(joined)], axis=1)
    lines = counts[:, _index("newlines")] + 1
    whole = np.maximum(sizes, 1) / np.maximum(read, 1)
    columns = [
        np.log1p(sizes),
        np.log1p(words * whole),
        np.log1p(lines * whole),
        *np.log1p(runs * whole[:, None]).T,
        read / np.maximum(words, 1),
        np.log1p(read / lines),
        *(counts / np.maximum(read, 1)[:, None]).T,
        *np.log1p(marks).T,
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _class_counts(
    joined: NDArray[np.uint8], ends: NDArray[np.int64], read: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Bytes of each class in each text: of shape (texts, classes)."""
    classes = len(_CLASSES) + 1
    rows = np.repeat(np.arange(len(ends), dtype=np.int64) * classes, read + 1)
    flat = np.bincount(rows + _CLASS_OF[joined[: ends[-1]]], minlength=len(ends) * classes)
    counts = flat.reshape(len(ends), classes)[:, :-1].astype(np.float64)
    counts[:, _index("spaces")] -= 1
    return counts


def _marked(places: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of these places lie in each text."""
    return np.diff(np.searchsorted(np.flatnonzero(places), ends), prepend=0)


def _beginnings(joined: NDArray[np.uint8]) -> Iterator[NDArray[np.bool_]]:
    """Where numbers begin, capitalized words, and the gaps after sentences."""
    kind = _CLASS_OF[joined]
    before, here = np.concatenate([[_index("spaces")], kind[:-1]]), kind
    blank = (here == _index("spaces")) | (here == _index("newlines"))
    yield (here == _index("digits")) & (before != _index("digits"))
    capital = (here == _index("upper")) & (before != _index("upper"))
    yield capital & (before != _index("lower"))
    yield blank & ((before == _index("stops")) | (before == _index("questions")))


def _index(name: str) -> int:
    return list(_CLASSES).index(name)


def _word_starts(
    joined: NDArray[np.uint8], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where words of letters begin, and how many each text has."""
    letters = _LETTER_OF[joined] != ord(" ")
    starts = np.flatnonzero(letters[1:] & ~letters[:-1]) + 1
    if letters[0]:
        starts = np.concatenate([[0], starts])
    return starts, np.diff(np.searchsorted(starts, ends), prepend=0)


def _word_marks(
    joined: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Words of each group in each text: of shape (texts, groups)."""
    plain = _LETTER_OF[joined].astype(np.uint32)
    key = plain[starts]
    for place in (1, 2, 3):
        key |= plain[starts + place] << np.uint32(8 * place)
    marks = np.zeros((len(ends), len(_KEYS)), np.int64)
    for group, keys in enumerate(_KEYS):
        found = starts[np.isin(key, keys)]
        marks[:, group] = np.diff(np.searchsorted(found, ends), prepend=0)
    return marks
