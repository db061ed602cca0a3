"""Do two answers to one question agree? What an audit asks of a cached and a fresh answer.

When in doubt they differ: a false difference costs one generation, a false agreement lets a
wrong answer be served. Equal texts always agree, and a kind that finds nothing to compare in
either text compares the texts.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from pipelines.code_fence import unfenced

_UNFOLDED = re.compile("([\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209f\u2150-\u215f]+)")
"""Superscripts, subscripts and fractions: NFKC would make 10\u00b2 the same as 102."""
_INSIDE_NUMBER = r"(?<=\d)[.,:/*\u2010-\u2015-](?=\d)|(?<![\w])[.-](?=\d)"
_PUNCTUATION = re.compile(
    rf"({_INSIDE_NUMBER})|[.,;:!?*_`\"'()\[\]{{}}<>\u00a1\u00ab\u00bb\u00bf\u2010-\u203a-]"
)
_NUMBER = re.compile(
    r"(?P<before>[$\u20ac\u00a3\u00a5\u20b9\u221a]?)\s?"
    r"(?P<value>(?<![\w.])[+-]?\.?\d"
    r"(?:(?:\s?[*/^\u00d7]\s?[+-]?|[.,:-]{1,3})?\d)*(?:[eE][+-]?\d{1,4})?)"
    r"(?P<after>[%\u00b2\u00b3\u00b9\u2070-\u2079\u00bc-\u00be]|\s?[^\W\d_]+)?"
)
_SCALE = re.compile(r"thousand|[mbtr]+illion|percent")
_UNIT = re.compile(
    r"[mck]?m|inch(es)?|ft|feet|miles?|met(er|re)s?|m?g|kg|lbs?|oz|grams?|m?l|lit(er|re)s?"
    r"|m?s|min|h|seconds?|minutes?|hours?|days?|weeks?|months?|years?|cents?|dollars?|euros?"
)
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_PLAIN = re.compile(r"[+-]?(\d+(\.\d+)?|\.\d+)([eE][+-]?\d+)?")
_LATEX = [
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\(?:times|cdot)\s?"), "\u00d7"),
    (re.compile(r"\\sqrt\{?"), "\u221a"),
    (re.compile(r"\^\{([^{}]*)\}"), r"^\1"),
]


class Comparator(Protocol):
    """What needs a model to compare: answers' embeddings, or a tier that judges.

    `agree` takes (cached, fresh) pairs and returns one verdict for each, in order. An answer
    that is too long for the model differs; a model that fails raises, and its pairs are then no
    evidence at all.
    """

    def agree(self, pairs: Sequence[tuple[str, str]]) -> list[bool]: ...


def exact(a: str, b: str) -> bool:
    return a == b


def normalized(a: str, b: str) -> bool:
    """Equal but for case, white space, punctuation and compatible forms of characters.

    Signs and separators of numbers count: -5 is not 5, and 1.5 is not 15.
    """
    if a == b:
        return True
    first = _normal(a)
    return first != "" and first == _normal(b)


def _normal(text: str) -> str:
    parts = _UNFOLDED.split(unicodedata.normalize("NFC", text).replace("\u2212", "-"))
    parts[::2] = [unicodedata.normalize("NFKC", part) for part in parts[::2]]
    kept = _PUNCTUATION.sub(lambda match: match[1] or " ", "".join(parts).casefold())
    return " ".join(kept.split())


@dataclass(frozen=True)
class _Number:
    value: str
    currency: str
    unit: str
    mark: str
    """What changes the value: a percent sign, a root, a scale, a letter written against it."""


def numeric(a: str, b: str, tolerance: float = 1e-6) -> bool:
    """The last number of both answers is equal, whole numbers exactly, others within a tolerance.

    The tolerance is relative. Percent signs, scales and what is written against the number must
    be the same; a currency or unit only where both have one. Dates, ranges, powers and fractions
    are compared as text.
    """
    first, second = _last_number(a), _last_number(b)
    if first is None or second is None:
        return first is None and second is None and normalized(a, b)
    if first.mark != second.mark or _clash(first.unit, second.unit):
        return False
    if _clash(first.currency, second.currency):
        return False
    x, y = _decimal(first.value), _decimal(second.value)
    if x is None or y is None:
        return first.value == second.value
    whole = x == x.to_integral_value() and y == y.to_integral_value()
    return x == y if whole else abs(x - y) <= Decimal(tolerance) * max(abs(x), abs(y))


def _clash(a: str, b: str) -> bool:
    return a != "" and b != "" and a != b


def _last_number(text: str) -> _Number | None:
    text = text.replace("\u2212", "-")
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    if last is None:
        return None
    after = last["after"] or ""
    word, before = after.strip().casefold(), last["before"]
    unit = word if _UNIT.fullmatch(word) else ""
    counts = not unit and (not after[:1].isspace() or _SCALE.fullmatch(word) is not None)
    root = before == "\u221a"
    mark = (before if root else "") + (word if counts else "")
    return _Number(re.sub(r"\s", "", last["value"]), "" if root else before, unit, mark)


def _decimal(value: str) -> Decimal | None:
    """The number, unless it is a date, a range, a power or of unclear separators."""
    if _GROUPED.fullmatch(value):
        value = value.replace(",", "")
    elif value.count(",") == 1 and "." not in value:
        value = value.replace(",", ".")
    return Decimal(value) if _PLAIN.fullmatch(value) else None


def equal_json(a: str, b: str) -> bool:
    """Equal after parsing; a code fence around the whole answer is no difference.

    The order of keys does not count, that of lists does; 1 equals 1.0 but not true.
    """
    if a == b:
        return True
    try:
        return _same(_parsed(a), _parsed(b))
    # Too deep, too long a number, or no JSON: nothing says that the two are the same.
    except (ValueError, RecursionError):
        return False


def _parsed(text: str) -> Any:
    return json.loads(unfenced(text), parse_float=Decimal, object_pairs_hook=_once_each)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return fields


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


AGREEMENT: Mapping[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "normalized": normalized,
    "numeric": numeric,
    "json": equal_json,
}
"""Answers that can be compared without a model, by the name that a configuration gives."""
