"""What an answer of a cascade must pass to be taken, as a configuration says it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.section import Section


class ByConfidence(Section):
    """The probability that the model itself gave to its tokens."""

    by: Literal["confidence"]
    measure: Literal["mean", "min", "product"] = Field(
        "mean", description="of the tokens' probabilities; mean is the geometric one"
    )
    at_least: float = Field(ge=0, le=1)


class ByAgreement(Section):
    """Another cheap model, unlike the first, gives the same answer."""

    by: Literal["agreement"]
    tier: str
    compare: Literal["exact", "normalized", "numeric", "json"] = "normalized"


class Verifier(Section):
    """A tier that reads the request and the answer, and grades the answer."""

    tier: str
    guide: str = Field(
        "Grade how right and complete the answer is, from 1 (wrong) to 10 (right and complete).",
        description="what the verifying model is told",
    )


class ByVerifier(Verifier):
    """The verifier's grade is high enough."""

    by: Literal["verifier"]
    at_least: int = Field(8, ge=1, le=10, description="grades go from 1, wrong, to 10, right")


class ByRegex(Section):
    by: Literal["regex"]
    pattern: str = Field(description="searched in the answer")


class ByJsonSchema(Section):
    """The answer is JSON that fits; a code fence around it does not matter."""

    by: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(description="a JSON Schema")


class ByPython(Section):
    """A function of yours: `check(prompt: str, response: str) -> bool`."""

    by: Literal["python"]
    entry_point: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="package.module:function"
    )
    version: str = Field(
        "1", description="change it with the function, so that no older answer is served"
    )


Accept = Annotated[
    ByConfidence | ByAgreement | ByVerifier | ByRegex | ByJsonSchema | ByPython,
    Field(discriminator="by"),
]
