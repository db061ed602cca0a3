"""What a request can cost at most, told before it runs."""

import json
from collections.abc import Mapping
from typing import Any

from pipelines.prices import HourRate, TokenRate
from pipelines.requests import Request, text_of

_TEMPLATE_TOKENS = 64
_TOOL_SPACE = 4
_UNLIMITED = 1 << 17


def worst_tokens(
    request: Request, defaults: Mapping[str, Any], unlimited: int = _UNLIMITED
) -> tuple[int, int]:
    """Prompt and completion tokens that a request cannot exceed: a token is at least one byte.

    Args:
        unlimited: the completion tokens of a request that states no limit.
    """
    fields = {**defaults, **request.sampling}
    text = "".join(text_of(m.get("content")) for m in request.messages)
    prompt = len(text.encode()) + _TEMPLATE_TOKENS * len(request.messages)
    called = [m["tool_calls"] for m in request.messages if "tool_calls" in m]
    if called:
        prompt += _TOOL_SPACE * len(json.dumps(called))
    if "tools" in fields:
        # A template may indent them; nothing makes them more than a few times as long.
        prompt += _TOOL_SPACE * len(json.dumps(fields["tools"]))
    if "encoding_format" in fields:
        return prompt, 0
    return prompt, (fields.get("max_tokens") or unlimited) * (fields.get("n") or 1)


def worst_nusd(
    request: Request,
    defaults: Mapping[str, Any],
    rate: TokenRate | HourRate,
    unlimited: int = _UNLIMITED,
) -> int:
    """Nano-dollars that a request cannot exceed; a replica's time is not paid by the token."""
    if isinstance(rate, HourRate):
        return 0
    prompt, completion = worst_tokens(request, defaults, unlimited)
    return (prompt * rate.input + completion * rate.output) // 10**6 + 1
