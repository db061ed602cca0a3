"""The configuration of `nightmill distill`, strictly typed like that of a run."""

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipelines.config import InputFormat, Storage
from pipelines.quant_formats import GROUP_SIZES, Kind
from pipelines.section import Section

Baseline = Literal["rtn", "gptq", "cross_entropy"]


class Format(Section):
    """How the student's linear layers are stored."""

    kind: Kind = "int4"
    group_size: int | None = Field(
        None, description="weights that share a scale; int4: 32, 64 or 128, by default 32"
    )
    trainable_scales: bool = Field(False, description="learn the scales along with the weights")

    @property
    def resolved_group_size(self) -> int | None:
        return self.group_size if self.group_size is not None else GROUP_SIZES[self.kind][0]


class DataColumns(Section):
    """What the columns are called; in an OUTPUT of `run` the answer is its `response`."""

    prompt: str = "prompt"
    messages: str = "messages"
    response: str = "response"
    label: str | None = Field("label", description="the right answer, where rows have one")


class Data(Section):
    """Prompts to learn from: files as `run` reads them, or an OUTPUT directory of a run."""

    path: str = Field(description="a file, a folder, a glob, or an OUTPUT directory")
    format: InputFormat = "auto"
    columns: DataColumns = DataColumns()


class Eval(Section):
    """Held-out prompts. No prompt among them, and no repeat of one, is trained on.

    They are two halves: one decides when to stop and which step is best, the other gives the
    figures of the report and of the publish gate, so that no figure was chosen for being good.
    """

    rows: PositiveInt | None = Field(None, description="distinct prompts held out")
    share: float | None = Field(
        None, gt=0, lt=1, description="or this share of them; by default .1"
    )
    seed: NonNegativeInt = 0
    every_steps: PositiveInt = Field(50, description="steps between evaluations and checkpoints")

    @model_validator(mode="after")
    def one_size(self) -> "Eval":
        if self.rows is not None and self.share is not None:
            raise ValueError("rows and share both say how many prompts are held out; give one")
        return self


class Train(Section):
    steps: PositiveInt = 500
    batch_tokens: PositiveInt = Field(8192, description="tokens of one step, over all workers")
    micro_batch_tokens: PositiveInt = Field(
        16_384, description="tokens that go through a model at once on one worker"
    )
    learning_rate: PositiveFloat = Field(
        1e-5, description="its peak; a copy of the teacher begins where it should end: low"
    )
    warmup: NonNegativeInt = Field(20, description="steps in which the rate rises to its peak")
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat = 1.0
    seed: NonNegativeInt = 0
    kl_chunk: PositiveInt = Field(
        1024, description="answer positions whose logits over the vocabulary exist at once"
    )
    hidden_weight: NonNegativeFloat = Field(
        0.0, description="weight of the distance between last hidden states; for smaller students"
    )
    temperature: PositiveFloat = Field(1.0, description="softens both distributions in the loss")
    precision: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="what layers compute in; the student's weights stay float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="less memory for more time: activations are computed twice"
    )


class EarlyStop(Section):
    patience: PositiveInt = Field(5, description="evaluations without a lower KL before stopping")


class Publish(Section):
    """What the student must show before it is exported."""

    min_kl_margin: float = Field(
        0.1, ge=0, lt=1, description="its KL is lower than MSE-scale PTQ's by this share of it"
    )
    max_score_loss_points: NonNegativeFloat = Field(
        1.0, description="points of exact match that it may lose to the unquantized student"
    )


class Workers(Section):
    num_workers: PositiveInt = 1
    use_gpu: bool = Field(False, description="one GPU for each worker")
    num_cpus: PositiveFloat = Field(1.0, description="Ray CPUs that each worker reserves")
    threads: PositiveInt | None = Field(
        None, description="CPU threads of each worker; by default the machine's cores, shared"
    )
    max_failures: NonNegativeInt = Field(2, description="deaths of workers before the job fails")


class DistillConfig(Section):
    """Everything that decides what a distillation does and what it may publish."""

    teacher: str = Field(description="the folder of the model to mimic")
    student: str | None = Field(
        None,
        description="the folder of a model with the same tokenizer; unset: a copy of the teacher",
    )
    format: Format = Format()
    data: list[Data] = Field(min_length=1)
    answers: Literal["teacher", "data"] = Field(
        "data",
        description="what is trained on: greedy answers of the teacher, or those that the data "
        "brings and the teacher's where a row has none",
    )
    objective: Literal["kl", "cross_entropy"] = "kl"
    max_length: PositiveInt | None = Field(
        None, description="longest prompt with answer, in tokens; by default the models' context"
    )
    max_new_tokens: PositiveInt = Field(
        64, description="longest answer that the teacher or the student generates"
    )
    output: str = Field(description="a folder that all workers can write to")
    eval: Eval = Eval()
    train: Train = Train()
    early_stop: EarlyStop = EarlyStop()
    publish: Publish = Publish()
    baselines: list[Baseline] = Field(
        ["rtn", "gptq"],
        description="what the report shows beside PTQ with MSE scales; cross_entropy trains as "
        "long as the student",
    )
    workers: Workers = Workers()
    storage: Storage = Storage()
