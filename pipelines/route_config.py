"""What `route` may say in a configuration: how a row's tier is chosen, and which come after it."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipelines.accept_config import Accept, ByAgreement, ByVerifier
from pipelines.calibrated_config import (
    ByJudge,
    Calibrated,
    CertifiedCascade,
    CertifiedGatekeeper,
    Classifier,
    DomainMean,
    GradesPrompts,
)
from pipelines.section import Section


class Match(Section):
    """Conditions on one row; those given must all hold."""

    max_prompt_chars: PositiveInt | None = None
    min_prompt_chars: PositiveInt | None = None
    regex: str | None = Field(None, description="searched in the last user message")
    languages: list[str] | None = Field(
        None, min_length=1, description="of the last user message, one of these: codes such as de"
    )
    columns: dict[str, list[str]] = Field(
        default_factory=dict, description="user's column -> accepted values, compared as text"
    )


class Rule(Section):
    when: Match
    tier: str


class Fixed(Section):
    policy: Literal["fixed"]
    tier: str


class Rules(Section):
    policy: Literal["rules"]
    rules: list[Rule]
    otherwise: str = Field(description="the tier of rows that no rule matches")

    @property
    def asks_language(self) -> bool:
        return any(rule.when.languages for rule in self.rules)


class Gatekeeper(GradesPrompts):
    """The grade of a prompt decides which tier answers."""

    policy: Literal["gatekeeper"]
    cheap: str = Field(description="the tier of prompts up to the threshold")
    strong: str = Field(description="the tier of all others, and of those that got no grade")
    threshold: int = Field(5, ge=1, le=10, description="grades go from 1, trivial, to 10")


class Step(Section):
    """One tier of a cascade, and what its answer must pass to be taken."""

    tier: str
    accept: list[Accept] = Field(
        min_length=1, description="all must hold; tried in this order, so name cheap ones first"
    )


class Cascade(Section):
    """Answer cheap, accept or escalate. An answer of the last tier is taken as it is."""

    policy: Literal["cascade"]
    steps: list[Step] = Field(min_length=1)
    otherwise: str = Field(description="the tier of rows whose answers no step accepted")


Route = Annotated[
    Fixed
    | Rules
    | DomainMean
    | Classifier
    | Gatekeeper
    | CertifiedGatekeeper
    | Cascade
    | CertifiedCascade,
    Field(discriminator="policy"),
]


def tiers_named(route: Route | Calibrated) -> Iterator[tuple[str, str]]:
    """(key, tier) of every tier that a route names."""
    match route:
        case Fixed():
            yield "route.tier", route.tier
        case Rules():
            yield "route.otherwise", route.otherwise
            for i, rule in enumerate(route.rules):
                yield f"route.rules.{i}.tier", rule.tier
        case Calibrated():
            yield "route.cheap", route.cheap
            yield "route.strong", route.strong
            if isinstance(route.quality, ByJudge):
                yield "route.quality.tier", route.quality.tier
            if isinstance(route, CertifiedGatekeeper):
                yield "route.tier", route.tier
            if isinstance(route, CertifiedCascade) and route.verifier is not None:
                yield "route.verifier.tier", route.verifier.tier
        case Gatekeeper():
            yield "route.tier", route.tier
            yield "route.cheap", route.cheap
            yield "route.strong", route.strong
        case Cascade():
            for i, step in enumerate(route.steps):
                yield f"route.steps.{i}.tier", step.tier
                for j, accept in enumerate(step.accept):
                    if isinstance(accept, ByAgreement | ByVerifier):
                        yield f"route.steps.{i}.accept.{j}.tier", accept.tier
            yield "route.otherwise", route.otherwise


def handovers(route: Route) -> Iterator[tuple[str, str]]:
    """(before, after): pairs of tiers of which the second may get a row from the first."""
    match route:
        case Calibrated():
            yield route.cheap, route.strong
            if isinstance(route, CertifiedGatekeeper):
                yield route.tier, route.cheap
                yield route.tier, route.strong
            if isinstance(route, CertifiedCascade) and route.verifier is not None:
                yield route.cheap, route.verifier.tier
                yield route.verifier.tier, route.strong
        case Gatekeeper():
            yield route.tier, route.cheap
            yield route.tier, route.strong
        case Cascade():
            reached = [*(step.tier for step in route.steps), route.otherwise]
            for step, after in zip(route.steps, reached[1:], strict=True):
                visited = step.tier
                yield visited, after
                for accept in step.accept:
                    if isinstance(accept, ByAgreement | ByVerifier):
                        yield visited, accept.tier
                        yield accept.tier, after
                        visited = accept.tier
        case _:
            return
