"""What a request asks, apart from its context: what an answer to a similar one may serve."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.keys import context_key
from pipelines.requests import Request, other_forms


@dataclass(frozen=True)
class Question:
    """What a request asks, apart from its context.

    Attributes:
        scope: the context's key. Only questions of one scope are ever compared: it holds the
            tenant, the other messages, every sampling field, and the policy with its models.
    """

    scope: bytes
    text: str


def question_of(
    request: Request, policy: bytes, keyed_by: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Question | None:
    """The question of a request, or None where only the very same request may share its answer.

    That is so for whatever is sampled, even from a seed, and for whatever asks for more than one
    plain text: tools, formats, several choices, probabilities.
    """
    fields = {**defaults, **request.sampling}
    greedy = fields.get("temperature") == 0
    if not greedy or other_forms(fields) or request.messages[-1]["role"] != "user":
        return None
    return Question(context_key(request, policy, keyed_by), request.last_user_text)
