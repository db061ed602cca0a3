"""What `route` may say where it learns from a sample, within a floor of lost quality."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.accept_config import Verifier
from pipelines.certify import Floor as Terms
from pipelines.embedding_model import EmbeddingModel
from pipelines.section import Section

_SHADOW_SHARE, _UNFAMILIAR = 0.02, 0.07


class GradesPrompts(Section):
    """A small model on a tier of its own reads every prompt and grades how hard it is."""

    tier: str = Field(description="the tier that grades")
    guide: str = Field(
        "Grade how hard this request is for a small language model, from 1 (trivial) to 10 "
        "(only an expert could answer it well).",
        description="what the grading model is told",
    )


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
    embedding: EmbeddingModel | None = Field(
        None, description="of the prompts: by it rows unlike the sample go to the strong tier"
    )
    unfamiliar: float = Field(
        _UNFAMILIAR, ge=0, lt=1, description="the share of rows like the sample's that the guard "
        "against rows unlike it may send to the strong tier for nothing; 0 switches it off"
    )  # fmt: skip
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
    def guard_can_tell(self) -> "Calibrated":
        if self.unfamiliar not in (0, _UNFAMILIAR) and self.embedding is None:
            raise ValueError(
                "unfamiliar: without embedding nothing tells rows unlike the sample; name a model"
            )
        return self

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
            # Not by what was set: a configuration that is written back sets everything.
            said = {"floor": self.floor != Floor(), "shadow_share": self.shadow_share is not None}
            for name in (name for name, is_said in said.items() if is_said):
                raise ValueError(
                    f"objective and {name}: max_quality spends budget_usd and keeps no floor; "
                    f"leave {name} out, or take min_cost"
                )
        return self


class CertifiedCascade(Calibrated):
    """Every row to the cheap tier first; its answer is taken where the model was sure enough, or
    where the verifier's grade is high enough."""

    policy: Literal["certified_cascade"]
    measure: Literal["auto", "mean", "min", "product"] = Field(
        "auto", description="of the tokens' probabilities; auto: what tells right from wrong best"
    )
    verifier: Verifier | None = Field(
        None, description="grades the answer, in place of the tokens' probabilities"
    )

    @model_validator(mode="after")
    def one_tells(self) -> "CertifiedCascade":
        if self.verifier is not None and self.measure != "auto":
            raise ValueError("measure and verifier: one of them tells what is taken; leave one out")
        return self


class CertifiedGatekeeper(Calibrated, GradesPrompts):
    """Prompts that a small model grades as easy enough to the cheap tier, all others and those
    without a grade to the strong one."""

    policy: Literal["certified_gatekeeper"]


class Learned(Calibrated):
    """The cheap tier where a model, fitted to a sample of the input, sees no loss."""

    embedding: EmbeddingModel


class DomainMean(Learned):
    """By the mean gain of the nearest domain: the baseline of all learned routing."""

    policy: Literal["domain_mean"]


class Classifier(Learned):
    """By the gain that a classifier expects of a prompt's embedding and its looks."""

    policy: Literal["classifier"]
    model: Literal["auto", "logistic", "knn", "boosting", "forest", "forest_logistic"] = "auto"
