"""How sure a model was of its answer, from the probabilities of its tokens."""

import json
import math
from typing import Literal

Measure = Literal["mean", "min", "product"]
MEASURES: tuple[Measure, ...] = ("mean", "min", "product")


def confidence(token_logprobs: str | None, measure: Measure) -> float | None:
    """A figure in [0, 1]; None where no token's probability is known.

    Args:
        token_logprobs: JSON in OpenAI's format, with `content`, or `token_logprobs` as the
            completions endpoint has it.
        measure: mean is the geometric mean of the tokens' probabilities, product their product.
    """
    logprobs = _logprobs(json.loads(token_logprobs)) if token_logprobs else []
    if not logprobs:
        return None
    if measure == "min":
        return math.exp(min(logprobs))
    total = sum(logprobs)
    return math.exp(total / len(logprobs) if measure == "mean" else total)


def _logprobs(told: dict[str, object] | None) -> list[float]:
    if not told:
        return []
    content = told.get("content")
    if isinstance(content, list):
        return [float(token["logprob"]) for token in content]
    plain = told.get("token_logprobs")
    return [float(x) for x in plain if x is not None] if isinstance(plain, list) else []
