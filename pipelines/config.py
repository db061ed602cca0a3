"""The configuration of a run, strictly typed: what may be said, and what it means if unsaid."""

from collections.abc import Iterable
from typing import Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipelines.calibrated_config import Calibrated
from pipelines.embedding_model import EmbeddingModel
from pipelines.nightly_config import Nightly
from pipelines.requests import EMBEDDING_FIELDS, REQUEST_FIELDS, SamplingFields
from pipelines.route_config import Route, tiers_named
from pipelines.section import Section
from pipelines.serve_config import Serve
from pipelines.submit_config import Submit
from pipelines.tier import Replicas, Tier
from pipelines.tier_order import in_order

InputFormat = Literal["auto", "parquet", "jsonl", "csv", "openai_batch"]


class Storage(Section):
    """Where `s3://` and `gs://` paths lead; the defaults suit the providers' own services."""

    endpoint_url: str | None = Field(None, description="an S3-compatible server")
    region: str | None = None
    anonymous: bool = False


class Columns(Section):
    """What the user's columns are called. Sampling fields keep OpenAI's names."""

    sampling: tuple[str, ...] = Field(
        tuple(name for name in REQUEST_FIELDS if name not in EMBEDDING_FIELDS),
        description="fields that are read from columns; leave out those whose names mean "
        "something else in your data, as dimensions often does",
    )

    id: str = "id"
    prompt: str = "prompt"
    messages: str = "messages"
    tenant: str | None = Field(
        None, description="rows with another value here never share an answer"
    )


class Input(Section):
    path: str = Field(description="a file, a folder or a glob; local, s3:// or gs://")
    format: InputFormat = "auto"
    columns: Columns = Columns()
    block_rows: PositiveInt | None = Field(
        None, description="rows that are committed together; by default from the input's size"
    )
    order: Literal["stream", "whole"] = Field(
        "stream",
        description="whole: sort the input once, so that rows with one prefix meet; it is read "
        "before the first row is answered",
    )
    ignore_model: bool = Field(
        False, description="OpenAI-batch input: route rows that name a model which is no tier"
    )

    @model_validator(mode="after")
    def fields_exist(self) -> "Input":
        if unknown := sorted(set(self.columns.sampling) - set(REQUEST_FIELDS)):
            raise ValueError(
                f"columns.sampling: {', '.join(unknown)}: no sampling field; they are "
                f"{', '.join(REQUEST_FIELDS)}"
            )
        return self


class Output(Section):
    path: str = Field(description="the OUTPUT directory; local, s3:// or gs://")
    openai_batch: bool = Field(
        False, description="also write OpenAI-batch output and error files for OpenAI-batch input"
    )


class Semantic(EmbeddingModel):
    """Answers served to questions that are worded otherwise, within a stated rate of error."""

    similarity: float = Field(
        0.98, ge=0.5, le=1, description="where a candidate starts; below .98 needs calibration"
    )
    max_wrong_hits: float = Field(
        0.01, gt=0, lt=1, description="wrong answers per hit that a group may reach at most"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="with which it must hold")
    audit_share: float = Field(
        0.05, gt=0, le=1, description="hits that are answered anew and compared"
    )
    agreement: Literal["exact", "normalized", "numeric", "json", "embedding"] = Field(
        "normalized", description="when a cached and a new answer count as the same"
    )
    answer_similarity: float = Field(
        0.9, gt=0, le=1, description="from where answers agree, with agreement: embedding"
    )
    verifier: str | None = Field(
        None, description="a cross-encoder that judges pairs that passed the gates"
    )
    verifier_threshold: float = Field(0.9, ge=0, le=1)
    replicas: PositiveInt | Replicas = Field(1, description="embedding actors")


class ResponseCacheConfig(Section):
    """Answers kept between runs, in LanceDB."""

    path: str
    enabled: bool = True
    semantic: Semantic | None = None
    ttl_days: PositiveFloat | None = Field(
        None, description="older answers are not served and removed in time"
    )
    max_entries: PositiveInt | None = Field(
        None, description="the oldest answers above this number are removed"
    )


class Tuning(Section):
    """Where `tune` keeps what it measured, for runs to use."""

    path: str = "~/.cache/nightmill/tuning"
    enabled: bool = Field(True, description="whether runs use the plans in there")


class SamplingDefaults(SamplingFields):
    """What rows that leave a field out get. Answers are greedy unless something else is said."""

    temperature: float | None = Field(0.0, ge=0, le=2)


class RunConfig(Section):
    """Everything that decides what a run does and costs."""

    input: Input
    output: Output
    tiers: list[Tier] = Field(min_length=1)
    route: Route
    baseline: str | None = Field(None, description="the tier that savings are measured against")
    sampling: SamplingDefaults = SamplingDefaults()
    dedup: bool = Field(True, description="answer exact duplicates of deterministic rows once")
    response_cache: ResponseCacheConfig | None = None
    tuning: Tuning = Tuning()
    budget_usd: PositiveFloat | None = None
    prices: str | None = Field(None, description="the price book, for billing.price_of")
    storage: Storage = Storage()
    submit: Submit = Submit()
    claim_shards: PositiveInt = Field(1, description="actors that share the claimed keys")
    routers: PositiveInt = Field(1, description="actors in the router pool")
    nightly: Nightly | None = Field(None, description="what `nightmill nightly` runs, and when")
    serve: Serve = Serve()

    @model_validator(mode="after")
    def names_resolve(self) -> "RunConfig":
        names = [tier.name for tier in self.tiers]
        if len(set(names)) < len(names):
            raise ValueError(f"tiers: names must differ, got {names}")
        for key, wanted in self._tier_references():
            if wanted not in names:
                raise ValueError(f"{key}: no tier {wanted!r}; tiers are {names}")
        in_order(self.tiers, self.route)
        return self

    @model_validator(mode="after")
    def objective_has_a_budget(self) -> "RunConfig":
        wants = isinstance(self.route, Calibrated) and self.route.objective == "max_quality"
        if wants and self.budget_usd is None:
            raise ValueError(
                "route.objective and budget_usd: max_quality spends a budget; set budget_usd"
            )
        return self

    def _tier_references(self) -> Iterable[tuple[str, str]]:
        yield from tiers_named(self.route)
        for tier in self.tiers:
            if tier.fallback is not None:
                yield f"tiers.{tier.name}.fallback", tier.fallback
        if self.baseline is not None:
            yield "baseline", self.baseline

    @property
    def cache_in_use(self) -> ResponseCacheConfig | None:
        """The response cache, unless it is switched off."""
        cache = self.response_cache
        return cache if cache and cache.enabled else None

    @property
    def engine_order(self) -> list[Tier]:
        """The tiers as rows meet them: who may get a row from another comes after it."""
        return in_order(self.tiers, self.route)

    def tier(self, name: str) -> Tier:
        return next(tier for tier in self.tiers if tier.name == name)
