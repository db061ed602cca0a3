"""What `route` may say in a configuration: how a row's tier is chosen, and which come after it."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from pipelines.certify import Floor as Terms
from pipelines.embedding_model import EmbeddingModel
from pipelines.section import Section

_SHADOW_SHARE = 0.02


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


class Gatekeeper(Section):
    """A small model on a tier of its own reads every prompt and grades how hard it is."""

    policy: Literal["gatekeeper"]
    tier: str = Field(description="the tier that grades")
    cheap: str = Field(description="the tier of prompts up to the threshold")
    strong: str = Field(description="the tier of all others, and of those that got no grade")
    threshold: int = Field(5, ge=1, le=10, description="grades go from 1, trivial, to 10")
    guide: str = Field(
        "Grade how hard this request is for a small language model, from 1 (trivial) to 10 "
        "(only an expert could answer it well).",
        description="what the grading model is told",
    )


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


class ByVerifier(Section):
    """A tier that reads the request and the answer, and grades the answer."""

    by: Literal["verifier"]
    tier: str
    at_least: int = Field(8, ge=1, le=10, description="grades go from 1, wrong, to 10, right")
    guide: str = Field(
        "Grade how right and complete the answer is, from 1 (wrong) to 10 (right and complete).",
        description="what the verifying model is told",
    )


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


class Floor(Section):
    """The contract: how much quality may be lost against the strong tier, and how surely."""

    loss_points: float = Field(
        1.0, gt=0, le=100, description="hundredths of mean quality, which goes from 0 to 1"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @property
    def terms(self) -> Terms:
        """As it is tested."""
        return Terms(self.loss_points, self.confidence)


class ByLabels(Section):
    """An answer is right if it agrees with a column of the input."""

    by: Literal["labels"]
    column: str
    compare: Literal["exact", "normalized", "numeric", "json"] = "normalized"


class ByStrong(Section):
    """The strong tier's answer is the measure; the cheap one's is right if it agrees with it."""

    by: Literal["strong"]
    compare: Literal["exact", "normalized", "numeric", "json"] = "normalized"


class BySimilarity(Section):
    """An answer is right if it means the same as the right one: that of a column of the input, or
    else the strong tier's."""

    by: Literal["similarity"]
    column: str | None = None
    at_least: float = Field(0.9, gt=0, le=1, description="cosine of the answers' embeddings")
    embedding: EmbeddingModel


class ByJudge(Section):
    """A tier reads both answers, twice, in either order. One that is better both times is."""

    by: Literal["judge"]
    tier: str
    guide: str = Field(
        "Say which of two answers to a request is better: more right, more complete, and no longer "
        "than it needs to be.",
        description="what the judging model is told",
    )


Quality = Annotated[ByLabels | ByStrong | BySimilarity | ByJudge, Field(discriminator="by")]


class Calibrated(Section):
    """The cheap tier as far as a floor is certified on a sample of the input."""

    cheap: str
    strong: str
    floor: Floor = Floor()
    quality: Quality
    objective: Literal["min_cost", "max_quality"] = Field(
        "min_cost",
        description="the least money within the floor; or the best quality that the run's "
        "budget_usd buys, for the whole input at once",
    )
    sample_rows: int = Field(
        1000,
        ge=100,
        description="of the input that both tiers answer at most: fewer where more would not pay",
    )
    calibrate: Literal["beforehand", "in_run"] = Field(
        "beforehand",
        description="by `nightmill calibrate`; or by the first run itself, on its bill",
    )
    shadow_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of the rows that stay cheap: answered by both tiers and compared, so that a "
        "broken floor is noticed while the run goes on; .02 where texts tell, else none",
    )
    seed: int = 0
    plans: str = Field("~/.cache/nightmill/routes", description="where `calibrate` keeps its own")

    @property
    def checked_share(self) -> float:
        """Of the rows that stay cheap: checked in the shadow."""
        if self.shadow_share is None:
            tells = self.objective == "min_cost" and isinstance(self.quality, ByLabels | ByStrong)
            return _SHADOW_SHARE if tells else 0.0
        return self.shadow_share

    @model_validator(mode="after")
    def shadow_can_compare(self) -> "Calibrated":
        if self.shadow_share and not isinstance(self.quality, ByLabels | ByStrong):
            raise ValueError(
                "shadow_share and quality: checks in the shadow compare texts, which tell nothing "
                f"by {self.quality.by}; leave shadow_share out, or measure by labels or strong"
            )
        return self

    @model_validator(mode="after")
    def objective_is_one(self) -> "Calibrated":
        if self.objective == "max_quality":
            for name in {"floor", "shadow_share"} & self.model_fields_set:
                raise ValueError(
                    f"objective and {name}: max_quality spends budget_usd and keeps no floor; "
                    f"leave {name} out, or take min_cost"
                )
        return self


class CertifiedCascade(Calibrated):
    """Every row to the cheap tier first; its answer is taken where the model was sure enough."""

    policy: Literal["certified_cascade"]
    measure: Literal["auto", "mean", "min", "product"] = Field(
        "auto", description="of the tokens' probabilities; auto: what tells right from wrong best"
    )


class Learned(Calibrated):
    """The cheap tier where a model, fitted to a sample of the input, sees no loss."""

    embedding: EmbeddingModel
    unfamiliar: float = Field(
        0.07, ge=0, lt=1, description="the share of rows like the sample's that the guard against "
        "rows unlike it may send to the strong tier for nothing; 0 switches it off"
    )  # fmt: skip


class DomainMean(Learned):
    """By the mean gain of the nearest domain: the baseline of all learned routing."""

    policy: Literal["domain_mean"]


class Classifier(Learned):
    """By the gain that a classifier expects of a prompt's embedding and its looks."""

    policy: Literal["classifier"]
    model: Literal["auto", "logistic", "knn", "boosting", "forest", "forest_logistic"] = "auto"


Route = Annotated[
    Fixed | Rules | DomainMean | Classifier | Gatekeeper | Cascade | CertifiedCascade,
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
