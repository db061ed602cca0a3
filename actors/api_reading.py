"""What both dialects check: what may be asked for, and whether an answer is one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cost import Usage
from pipelines.errors import RowProblem

Body = dict[str, Any]

NEVER = ("lora", "dimensions", "encoding_format")
"""What no API is asked for."""


class Unusable(Exception):
    """An answer that is no answer: what is missing or wrong in it.

    Attributes:
        usage: what it cost all the same; None if it does not say.
    """

    def __init__(self, what: str, usage: Usage | None = None) -> None:
        super().__init__(what)
        self.usage = usage


def asks(value: Any) -> bool:
    """Whether a field says anything; a zero does, as of a seed or of logprobs."""
    return value is not None and value is not False and value not in ("none", {"type": "text"})


def unsupported(fields: Mapping[str, Any], names: Sequence[str], who: str) -> RowProblem | None:
    for name in names:
        if asks(fields.get(name)):
            return RowProblem("unsupported", f"{name}: {who} cannot be asked for it")
    return None


def token_count(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Unusable(f"its usage.{name} is {value!r}")
    return value


def checked(usage: Usage) -> Usage:
    if usage.prompt_tokens == 0:
        raise Unusable("its usage counts no prompt")
    if usage.cached_prompt_tokens > usage.prompt_tokens:
        raise Unusable("its usage counts more cached prompt tokens than prompt tokens")
    return usage


def listed(told: Any, name: str, usage: Usage, may_be_empty: bool = False) -> list[Any]:
    found = told.get(name)
    if not isinstance(found, list) or not (found or may_be_empty):
        raise Unusable(f"it has no {name}", usage)
    return found


def as_json(value: Any) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None
