"""Which engine settings are best, decided from measurements and their noise.

A plan is nothing but engine arguments under vLLM's own names, with what they were measured on.
It never changes an answer: speculation verifies every token, sizes only decide what runs
together. Settings that do change answers are shown, not taken.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipelines.config import RunConfig
from pipelines.keys import canonical_json, digest, folder_digests
from pipelines.replicas import cpu_engines
from pipelines.storage import Directory
from pipelines.tier import VLLM, Tier

_ALIKE_FACTOR = 2.0
_NOISE_FLOOR = 0.02
_STANDARD_ERRORS = 2.0
# Of normal scatter: standard deviation over median absolute deviation, and standard error of the
# median over that of the mean.
_NORMAL_OVER_MAD, _MEDIAN_OVER_MEAN = 1.4826, 1.2533


@dataclass(frozen=True)
class Subject:
    """What a measurement holds for.

    Attributes:
        model: changes with any file of the model or its draft, with the user's arguments, and
            with the share of a machine that an engine gets.
        engine: name and version.
        hardware: the accelerators, or the processor.
        workload: changes with routing and sampling defaults.
        row_bytes: of an input row, on average.
    """

    model: str
    engine: str
    hardware: str
    workload: str
    row_bytes: float

    def covers(self, other: "Subject") -> bool:
        """Whether a plan for this one serves the other: the same, with rows about as long."""
        same = (self.model, self.engine, self.hardware, self.workload) == (
            other.model,
            other.engine,
            other.hardware,
            other.workload,
        )
        ratio = self.row_bytes / max(other.row_bytes, 1e-9)
        return same and 1 / _ALIKE_FACTOR <= ratio <= _ALIKE_FACTOR


@dataclass(frozen=True)
class Tried:
    """One setting and how it did; `gain` is over what was best when it was tried."""

    name: str
    engine_args: dict[str, Any]
    tokens_per_s: float
    gain: float
    noise: float
    taken: bool
    note: str = ""


@dataclass(frozen=True)
class TuningPlan:
    """The best engine arguments found for a subject, and the table of what was tried."""

    subject: Subject
    engine_args: dict[str, Any]
    gain: float
    tried: list[Tried] = field(default_factory=list)

    @property
    def key(self) -> str:
        return digest(canonical_json(asdict(self.subject))).hex()

    def without_speculation(self) -> "TuningPlan":
        kept = {k: v for k, v in self.engine_args.items() if k != "speculative_config"}
        return replace(self, engine_args=kept)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=2).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "TuningPlan":
        raw = json.loads(text)
        tried = [Tried(**entry) for entry in raw["tried"]]
        return cls(Subject(**raw["subject"]), raw["engine_args"], raw["gain"], tried)


def subject_of(
    config: RunConfig, tier: Tier, engine: str, hardware: str, row_bytes: float
) -> Subject:
    """The subject of a tier in a run."""
    assert isinstance(tier.engine, VLLM)
    arguments = tier.engine.model_dump(mode="json")
    # What is left of the machine for each engine.
    share = [tier.num_gpus, tier.num_cpus, cpu_engines(config.tiers)]
    workload = [config.route.model_dump(mode="json"), config.sampling.given(), tier.name]
    return Subject(
        model=digest(canonical_json([arguments, folder_digests(arguments), share])).hex(),
        engine=engine,
        hardware=hardware,
        workload=digest(canonical_json(workload)).hex(),
        row_bytes=row_bytes,
    )


def load_plans(directory: Directory) -> list[TuningPlan]:
    names = [name for name in directory.names("") if name.endswith(".json")]
    return [TuningPlan.from_json(directory.read(name)) for name in names]


def save_plan(directory: Directory, plan: TuningPlan) -> None:
    directory.write(f"{plan.key}.json", plan.to_json())


def find_plan(plans: Sequence[TuningPlan], subject: Subject) -> TuningPlan | None:
    """The plan that serves a subject; of several the one for the most similar rows."""
    fitting = [plan for plan in plans if plan.subject.covers(subject)]
    return min(
        fitting,
        key=lambda plan: abs(math.log(plan.subject.row_bytes / max(subject.row_bytes, 1e-9))),
        default=None,
    )


@dataclass(frozen=True)
class Comparison:
    """How much faster one choice is than another, and how much of that may be noise."""

    gain: float
    noise: float

    @property
    def wins(self) -> bool:
        return self.gain - 1 > self.noise


def compare(new: Sequence[float], old: Sequence[float]) -> Comparison:
    """Round against round: the median ratio; its noise is two standard errors, at least 2 %.

    The error comes from the middle spread of the ratios: on a shared machine one round in a few
    is far out, and a choice that won in all others has won.
    """
    ratios = [a / b for a, b in zip(new, old, strict=True)]
    gain = statistics.median(ratios)
    spread = statistics.median(abs(ratio - gain) for ratio in ratios)
    error = _MEDIAN_OVER_MEAN * _NORMAL_OVER_MAD * spread / math.sqrt(len(ratios))
    return Comparison(gain, max(_NOISE_FLOOR, _STANDARD_ERRORS * error))


Schedule = list[list[int]]
"""[first batch size, last, speculative tokens], in vLLM's words
`num_speculative_tokens_per_batch_size`."""


def best_tokens(rates: Mapping[int, Sequence[float]]) -> int:
    """The number of speculative tokens for one batch size; none unless one beats it.

    Args:
        rates: speculative tokens -> tokens a second; 0 is there.
    """
    best = max(rates, key=lambda tokens: statistics.median(rates[tokens]))
    return best if compare(rates[best], rates[0]).wins else 0


def schedule(tokens: Mapping[int, int], largest: int) -> Schedule:
    """A table for every batch size from those measured; it changes halfway between two.

    Args:
        tokens: batch size -> speculative tokens.
        largest: the largest batch that the engine runs.
    """
    table: Schedule = []
    sizes = sorted(size for size in tokens if size <= largest)
    for size, following in zip(sizes, [*sizes[1:], None], strict=True):
        last = largest if following is None else max(int(math.sqrt(size * following)), size)
        if table and table[-1][2] == tokens[size]:
            table[-1][1] = last
        else:
            table.append([table[-1][1] + 1 if table else 1, last, tokens[size]])
    return table


def tokens_at(table: Schedule, batch_size: int) -> int:
    """What a schedule says for a batch size."""
    return next((n for first, last, n in table if first <= batch_size <= last), table[-1][2])


def run_seconds(rates: Mapping[int, float], rows: int, tokens_per_row: float) -> float:
    """How long rows take: full batches first, then the batch drains to the last row.

    Args:
        rates: batch size -> tokens a second; the largest is the full batch.
    """
    sizes = sorted(rates)
    seconds = max(rows - sizes[-1], 0) / rates[sizes[-1]]
    for before, size in zip([0, *sizes], sizes, strict=False):
        seconds += max(min(size, rows) - before, 0) / rates[size]
    return seconds * tokens_per_row
