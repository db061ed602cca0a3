"""A random sample of the input, answered by both tiers of a learned route."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.batch import run
from jobs.preflight import Plan
from jobs.route_spending import SAMPLES
from jobs.summary import Summary
from pipelines.calibrated_config import ByLabels, BySimilarity, Calibrated, CertifiedCascade
from pipelines.config import RunConfig
from pipelines.errors import ErrorKind, UsageProblem
from pipelines.intake import read_block
from pipelines.keys import digest
from pipelines.requests import Request
from pipelines.route_plan import known_key
from pipelines.storage import Directory, open_filesystem

_READ = ("row_id", "status", "error_kind", "cost_usd", "response", "finish_reason", "tier",
         "model", "prompt_tokens", "completion_tokens", "token_logprobs")  # fmt: skip

_OUT: ErrorKind = "unavailable"

Answer = Mapping[str, Any]
"""A row of the sample's run: the columns `_READ`."""


@dataclass(frozen=True)
class Sampled:
    """One row of the sample; a row that stands twice in the input may be in it twice.

    Attributes:
        key: `known_key` of the request.
        label: the right answer, if the input has one.
        held: whether it is to certify on, rather than to fit on.
    """

    key: str
    request: Request
    label: str | None
    held: bool = False


@dataclass(frozen=True)
class Line:
    """One question to one tier.

    Attributes:
        name: unlike that of any other.
    """

    name: str
    tier: str
    messages: list[dict[str, Any]]
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Answered:
    """What the tiers said to a sampled row.

    Attributes:
        grade: the reply of the tier that grades; None where it was not asked.
    """

    sampled: Sampled
    cheap: Answer
    strong: Answer
    grade: Answer | None = None

    @property
    def was_reached(self) -> bool:
        """A tier that could not be reached tells nothing of its answers."""
        said = (self.cheap, self.strong, self.grade)
        return all(answer is None or is_own(answer) for answer in said)


def is_own(answer: Answer) -> bool:
    """Whether it is what the tier had to say, be it an error."""
    return answer["error_kind"] != _OUT


def draw(plan: Plan, route: Calibrated) -> list[Sampled]:
    """Rows of the input in random order, each as likely as any other; bad ones and those that name
    a tier are left out, because routing has no say in them.

    Every second one is held out. The first rows of a larger sample are those of a smaller one.

    Raises:
        UsageProblem: the input has no column of labels, or too few rows.
    """
    label = route.quality.column if isinstance(route.quality, ByLabels | BySimilarity) else None
    if label is not None and label not in plan.schema.names:
        raise UsageProblem(
            f"route.quality.column: the input has no column {label!r}; it has "
            f"{', '.join(plan.schema.names)}"
        )
    order = np.random.default_rng(route.seed).permutation(plan.num_rows)[: route.sample_rows]
    found = dict(_read(plan, np.sort(order), label))
    drawn = [found[at] for at in order.tolist() if at in found]
    return [Sampled(*row, held=i % 2 == 1) for i, row in enumerate(drawn)]


def _read(
    plan: Plan, wanted: np.ndarray, label: str | None
) -> Iterator[tuple[int, tuple[str, Request, str | None]]]:
    """By position in the input: the key, request and label of those of these rows that serve."""
    fs, _ = open_filesystem(plan.config.input.path, plan.config.storage)
    keyed_by, first = plan.dialect.keyed_by, 0
    for block in plan.blocks:
        places = wanted[(wanted >= first) & (wanted < first + block.num_rows)]
        own, first = places - first, first + block.num_rows
        if not len(own):
            continue
        table = read_block(block, plan.dialect, plan.schema, plan.policy, fs).take(own)
        names = {"_request", *keyed_by, *([label] if label else [])} & set(table.column_names)
        rows = table.select(sorted(names)).to_pylist()
        for place, row in zip(places.tolist(), rows, strict=True):
            if row["_request"] is None or (request := Request.from_json(row["_request"])).tier:
                continue
            right = row[label] if label else None
            if label is None or right is not None:
                key = known_key(request, {name: row.get(name) for name in keyed_by})
                yield place, (key, request, None if right is None else str(right))


def answer(
    config: RunConfig, route: Calibrated, sample: Sequence[Sampled], divert_stderr: bool
) -> tuple[list[Answered], int]:
    """Have both tiers answer; the same sample goes on where an earlier start stopped.

    Args:
        sample: rows of which no two have the same key.

    Returns:
        The answers, and what they cost in nano-dollars.
    """
    lines = [line for sampled in sample for line in _lines(route, sampled)]
    answers, summary = ask(config, route.strong, lines, "sample", divert_stderr)
    both = [
        Answered(
            sampled, answers[_name(sampled, route.cheap)], answers[_name(sampled, route.strong)]
        )
        for sampled in sample
    ]
    return both, summary.bill_nusd


def ask(
    config: RunConfig, tier: str, lines: Sequence[Line], name: str, divert_stderr: bool
) -> tuple[dict[str, Answer], Summary]:
    """A run over these lines, and its answers by line; the same ones go on where they stopped, and
    those whose tier could not be reached then are asked again, with all others that failed.

    Raises:
        UsageProblem: the budget ends before they do.
    """
    text = "".join(map(_batch_line, lines)).encode()
    folder = f"{SAMPLES}/{digest(text).hex()[:12]}"
    output = Directory(f"{config.output.path.rstrip('/')}/{folder}", config.storage)
    # Written again it would be a newer file, and so another input.
    if not output.exists(f"{name}.jsonl"):
        output.write(f"{name}.jsonl", text)
    raw = config.model_dump()
    changed = {
        # What another tier says in its place tells nothing of a tier.
        "tiers": [{**asked, "fallback": None} for asked in raw["tiers"]],
        "input": {"path": f"{output.url}/{name}.jsonl", "format": "openai_batch"},
        "output": {"path": f"{output.url}/answers"},
        "route": {"policy": "fixed", "tier": tier},
        "response_cache": None,
    }
    asked = RunConfig.model_validate({**raw, **changed})
    answers = Directory(asked.output.path, config.storage)
    was_begun = bool(answers.parts("rows"))
    summary = run(asked, divert_stderr=divert_stderr)
    if was_begun and not summary.pending and not all(map(is_own, _answers(answers).values())):
        summary = run(asked, divert_stderr=divert_stderr, retry=True)
    if summary.pending:
        raise UsageProblem(
            f"budget_usd: the ${config.budget_usd:g} that are left are less than {len(lines):,} "
            f"answers of the {name} cost; raise it, or lower route.sample_rows. What is answered "
            f"stays in {summary.output}"
        )
    return _answers(answers), summary


def _lines(route: Calibrated, sampled: Sampled) -> Iterator[Line]:
    asks_sureness = isinstance(route, CertifiedCascade) and route.verifier is None
    sure = {"logprobs": True} if asks_sureness else {}
    for tier, more in ((route.cheap, sure), (route.strong, {})):
        fields = {**sampled.request.sampling, **more}
        yield Line(_name(sampled, tier), tier, sampled.request.messages, fields)


def _batch_line(line: Line) -> str:
    body = {"model": line.tier, "messages": line.messages, **line.fields}
    request = {"custom_id": line.name, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**request, "body": body}) + "\n"


def _name(sampled: Sampled, tier: str) -> str:
    return f"{sampled.key}-{tier}"


def _answers(output: Directory) -> dict[str, Answer]:
    return {
        row["row_id"]: row
        for part in output.parts("rows")
        for row in output.read_table(part, list(_READ)).to_pylist()
    }
