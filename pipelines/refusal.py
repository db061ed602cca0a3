"""Why a request is not taken, in the words of OpenAI's API."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """
    Attributes:
        status: of HTTP.
        kind: OpenAI's error type, such as `insufficient_quota`.
        retry_after_s: when asking again may help; None if it will not.
    """

    status: int
    message: str
    kind: str
    code: str
    retry_after_s: float | None = None
