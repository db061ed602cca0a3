"""A tier's configuration: its engine, what that runs on, and what it costs."""

from collections.abc import Mapping
from math import ceil, prod
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipelines.api_tier import API
from pipelines.errors import ErrorKind
from pipelines.section import Section

Placement = Literal["cloud", "private", "edge"]


class TokenPrice(Section):
    """US dollars per million tokens."""

    input: NonNegativeFloat
    output: NonNegativeFloat
    cached_input: NonNegativeFloat | None = Field(
        None, description="for prompt tokens read from the prefix cache; the input price if unset"
    )


class Serverless(Section):
    """Pay per token: at stated prices, or at the price book's entry for a model."""

    kind: Literal["serverless"]
    usd_per_mtok: TokenPrice | None = None
    price_of: str | None = Field(None, description="a model in the price book")

    @model_validator(mode="after")
    def one_price(self) -> "Serverless":
        if (self.usd_per_mtok is None) == (self.price_of is None):
            raise ValueError("give exactly one of usd_per_mtok and price_of")
        return self


class Provisioned(Section):
    """Pay per hour that a replica exists, busy or not."""

    kind: Literal["provisioned"]
    usd_per_gpu_hour: NonNegativeFloat | None = None
    gpus: PositiveFloat | None = Field(
        None, description="GPUs that one replica pays for; by default those it reserves, or one"
    )
    usd_per_replica_hour: NonNegativeFloat | None = Field(
        None, description="instead of usd_per_gpu_hour, for machines without GPUs"
    )
    equivalent_usd_per_mtok: TokenPrice | None = Field(
        None, description="what a token costs here when full; needed only by a baseline tier"
    )

    @model_validator(mode="after")
    def one_rate(self) -> "Provisioned":
        if (self.usd_per_gpu_hour is None) == (self.usd_per_replica_hour is None):
            raise ValueError("give exactly one of usd_per_gpu_hour and usd_per_replica_hour")
        return self

    def usd_per_hour(self, reserved_gpus: float) -> float:
        """What one replica costs an hour, in US dollars."""
        if self.usd_per_replica_hour is not None:
            return self.usd_per_replica_hour
        assert self.usd_per_gpu_hour is not None
        return self.usd_per_gpu_hour * (self.gpus or reserved_gpus or 1.0)


Billing = Annotated[Serverless | Provisioned, Field(discriminator="kind")]


class Reply(Section):
    """What the scripted engine says to some prompts."""

    regex: str = Field("", description="searched in the last user message")
    response: str = ""
    confidence: float = Field(1.0, gt=0, le=1, description="the probability of each token")
    fails: ErrorKind | None = Field(None, description="end in this error instead")


class Scripted(Section):
    """The deterministic engine that ships for tests and dry runs: it echoes, it never thinks."""

    kind: Literal["scripted"]
    model: str = "scripted"
    delay_s: NonNegativeFloat = 0.0
    replies: list[Reply] = Field(
        default_factory=list, description="the first that matches is said instead of the echo"
    )
    fail_every: PositiveInt | None = Field(None, description="every n-th distinct prompt fails")
    max_num_seqs: PositiveInt = 4096


class VLLM(Section):
    """A vLLM engine inside the cluster. `engine_args` keep vLLM's own names."""

    kind: Literal["vllm"]
    model: str = Field(description="a local folder or a hub name")
    revision: str | None = Field(None, description="of a hub model: its commit, 40 hex digits")
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="passed to vLLM unchanged, e.g. max_model_len, dtype"
    )
    task: Literal["generate", "embed", "classify", "score"] = Field(
        "generate", description="what the model is for: text, a vector, a label, a pair's score"
    )
    tool_parser: str | None = Field(None, description="vLLM's parser of this model's tool calls")
    reasoning_parser: str | None = Field(
        None, description="vLLM's parser that splits off what this model thinks before it answers"
    )
    lora_adapters: dict[str, str] = Field(
        default_factory=dict, description="name that a row's `lora` may give -> adapter's folder"
    )
    draft_model: str | None = Field(
        None, description="a small model with the same tokenizer, for `tune` to speculate with"
    )
    cpu_threads: PositiveInt | None = Field(None, description="CPU engines: OpenMP threads")
    kv_cache_gib: PositiveFloat = Field(1.0, description="CPU engines: memory for the KV cache")

    @model_validator(mode="after")
    def parsers_have_text(self) -> "VLLM":
        if self.task != "generate" and (self.tool_parser or self.reasoning_parser):
            raise ValueError(f"task: {self.task}: gives no text to parse; remove the parsers")
        return self


Engine = Annotated[Scripted | VLLM | API, Field(discriminator="kind")]


PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


class Replicas(Section):
    """A pool that grows while rows wait and shrinks when replicas idle."""

    min: NonNegativeInt = Field(
        1, description="with 0 an endpoint ends idle replicas; a run starts one, without its model"
    )
    max: PositiveInt

    @model_validator(mode="after")
    def ordered(self) -> "Replicas":
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; min must not exceed max")
        return self


def as_range(replicas: int | Replicas) -> Replicas:
    """A fixed number is a pool that neither grows nor shrinks."""
    return replicas if isinstance(replicas, Replicas) else Replicas(min=replicas, max=replicas)


class Tier(Section):
    """One place that answers rows, with what it costs."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    engine: Engine
    billing: Billing
    placement: Placement = "cloud"
    fallback: str | None = Field(
        None, description="the tier that answers rows while this one cannot be reached"
    )
    replicas: PositiveInt | Replicas = 1
    num_cpus: NonNegativeFloat = Field(0.1, description="Ray CPUs that one replica reserves")
    num_gpus: NonNegativeFloat = Field(
        0.0, description="GPUs that one replica reserves: a fraction of one, or whole ones"
    )
    accelerator: str | None = Field(None, description="the kind of GPU, by Ray's name, e.g. H100")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Ray labels of the nodes that replicas may run on"
    )
    max_attempts: PositiveInt = Field(
        3, description="how often a row runs when its engine dies; the third time it runs alone"
    )
    stall_s: PositiveFloat = Field(
        600.0, description="an engine with work that makes no step for so long is started again"
    )

    @property
    def replica_range(self) -> Replicas:
        return as_range(self.replicas)

    @property
    def spans_nodes(self) -> bool:
        """Whether an engine's parts are Ray actors, which may run on several nodes."""
        arguments = self.engine.engine_args if isinstance(self.engine, VLLM) else {}
        return arguments.get("distributed_executor_backend") == "ray"

    @model_validator(mode="after")
    def gpus_fit(self) -> "Tier":
        if self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError(
                f"num_gpus: {self.num_gpus}: one GPU may be shared, several may not; give a "
                "fraction below 1 or a whole number"
            )
        if self.accelerator and not self.num_gpus:
            raise ValueError(
                f"accelerator: {self.accelerator}, but num_gpus is 0; set num_gpus, or choose "
                "machines by labels"
            )
        if isinstance(self.engine, API):
            self._check_api(self.engine)
        if isinstance(self.engine, VLLM) and self.num_gpus:
            self._check_parallel(self.engine.engine_args)
        if self.spans_nodes and (self.num_gpus < 1 or isinstance(self.replicas, Replicas)):
            raise ValueError(
                "engine.engine_args.distributed_executor_backend: ray: needs whole GPUs in "
                "num_gpus and a fixed number of replicas, because Ray keeps the GPUs of a "
                "replica that left a pool"
            )
        return self

    def _check_api(self, engine: API) -> None:
        """What is paid by the hour runs somewhere of its own; here are only its requests."""
        if self.num_gpus:
            raise ValueError(
                f"num_gpus: {self.num_gpus:g}: an API tier computes elsewhere; remove num_gpus, "
                "or state its GPUs in billing.gpus"
            )
        if engine.mode == "batch" and self.replicas != 1:
            raise ValueError(
                "replicas: engine.mode: batch: has one replica, which collects all rows; set "
                "replicas: 1"
            )
        if engine.mode == "batch" and not isinstance(self.billing, Serverless):
            raise ValueError(
                "engine.mode: batch: providers bill batches by the token; set billing.kind: "
                "serverless"
            )

    def _check_parallel(self, engine_args: Mapping[str, Any]) -> None:
        """A GPU that is reserved and not used is paid for; one that is used must be reserved."""
        sizes = {name: engine_args[name] for name in PARALLEL_SIZES if name in engine_args}
        needed = prod(int(size) for size in sizes.values())
        if needed != ceil(self.num_gpus):
            said = " times ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(
                f"num_gpus: {self.num_gpus:g}, but engine.engine_args use {needed} "
                f"({said or 'no tensor_parallel_size'}); make them equal"
            )
