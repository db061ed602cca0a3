"""When an answer to one question may serve another: what is asked, and what is decided."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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


Use = Literal["serve", "trial", "audit"]


def use_of(similarity: float, threshold: float | None, chosen: bool) -> Use:
    """What becomes of a candidate that has passed the gates.

    Args:
        threshold: from where its group's wrong hits are bounded; None where they are not.
        chosen: by lot, for an audit.

    Returns:
        serve: the row gets the candidate's answer. trial, audit: it is answered anew and the
        answers are compared, in the first case because nothing bounds the error yet.
    """
    if threshold is None or similarity < threshold:
        return "trial"
    return "audit" if chosen else "serve"
