"""When a cached and a fresh answer count as the same."""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_TOLERANCE = 1e-6


def exact(cached: str, fresh: str) -> bool:
    return cached == fresh


def normalized(cached: str, fresh: str) -> bool:
    """Equal but for case, width of characters, space, and punctuation at the ends."""
    return _plain(cached) == _plain(fresh)


def numeric(cached: str, fresh: str) -> bool:
    """The last number of both is the same; without one in either, as `normalized`."""
    a, b = _last_number(cached), _last_number(fresh)
    if a is None and b is None:
        return normalized(cached, fresh)
    if a is None or b is None:
        return False
    return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def as_json(cached: str, fresh: str) -> bool:
    """Both are JSON of the same value; where either is none, they must be the same text."""
    try:
        a, b = json.loads(cached), json.loads(fresh)
    except (ValueError, RecursionError):
        return exact(cached, fresh)
    # As text: in Python 1, 1.0 and True are equal.
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


AGREEMENT: Mapping[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "normalized": normalized,
    "numeric": numeric,
    "json": as_json,
}
"""By the names that a configuration gives them; `embedding` needs a model and stands elsewhere."""


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(folded.split())
    return words.strip(" .,;:!?\"'`*")


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return float(found[-1].replace(",", "")) if found else None
