"""What a distillation learns from: prompts with answers, split so that no test is trained on."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from random import Random
from typing import Any, Literal

from fsspec import AbstractFileSystem

from pipelines.config import Columns, Input, Storage
from pipelines.distill_config import Data, Eval
from pipelines.errors import RowProblem, UsageProblem
from pipelines.intake import Dialect
from pipelines.keys import canonical_json, digest
from pipelines.reading import BadLine, read_parquet, read_rows
from pipelines.requests import Request, text_of
from pipelines.sources import file_version, find_files, plan_blocks
from pipelines.storage import Directory, open_filesystem

Part = Literal["train", "validation", "test"]
# What changes the prompt itself: how an answer was sampled is not learned.
_IN_PROMPT = ("tools", "chat_template_kwargs")
_FEW_KEPT = 2
"""Fewer held-out prompts than this cannot make two halves."""


@dataclass(frozen=True)
class Sample:
    """A prompt with what the data says about it.

    Attributes:
        answer: the text to learn, if the data brings one.
        complete: whether the answer ended by itself; one that was cut teaches no end.
        label: the right answer, if the row has one.
    """

    request: Request
    answer: str | None
    complete: bool
    label: str | None


@dataclass(frozen=True)
class Example:
    """A prompt as token ids, with its answer once there is one.

    Attributes:
        ids: the prompt's tokens, then the answer's with their end.
        prefix: how many of them are the prompt's.
        key: the same for prompts that ask the same.
    """

    ids: tuple[int, ...]
    prefix: int
    key: bytes
    label: str | None

    @property
    def answer_tokens(self) -> int:
        return len(self.ids) - self.prefix


def read_data(
    sources: Sequence[Data], storage: Storage
) -> tuple[list[Sample], Counter[str], list[str]]:
    """All samples, the rows left out by reason, and what changes when a file does.

    Raises:
        UsageProblem: a source cannot be read, or none holds a usable row.
    """
    samples: dict[bytes, Sample] = {}
    skipped: Counter[str] = Counter()
    versions: list[str] = []
    for number, source in enumerate(sources):
        is_output = _is_output(source, storage)
        path = f"{source.path.rstrip('/')}/rows" if is_output else source.path
        try:
            fs, _ = open_filesystem(path, storage)
            files = find_files(Input(path=path, format=source.format), storage)
            versions += [file_version(file, fs) for file in files]
            for block in plan_blocks(files, fs):
                rows = _rows(block, fs)
                for sample in _samples(rows, source, block.file.format, is_output):
                    _collect(sample, samples, skipped)
        except UsageProblem as problem:
            key = f"data.{number}.path"
            raise UsageProblem(str(problem).replace("input.path", key)) from problem
    if not samples:
        listed = ", ".join(f"{n} {reason}" for reason, n in skipped.items()) or "no rows at all"
        paths = ", ".join(source.path for source in sources)
        raise UsageProblem(f"data: {paths}: nothing to learn from ({listed}); add prompts")
    return list(samples.values()), skipped, versions


def _is_output(source: Data, storage: Storage) -> bool:
    """Whether the path is an OUTPUT directory of a run."""
    if any(character in source.path for character in "*?["):
        return False
    directory = Directory(source.path, storage)
    return directory.exists("resolved.yaml") and directory.exists("rows")


def _rows(block: Any, fs: AbstractFileSystem) -> Sequence[Any]:
    if block.file.format == "parquet":
        return read_parquet(block, fs).to_pylist()
    return read_rows(block, fs)


def _collect(sample: Sample | str, samples: dict[bytes, Sample], skipped: Counter[str]) -> None:
    """Keep one row of those that ask and answer the same."""
    if isinstance(sample, str):
        skipped[sample] += 1
        return
    asked = [sample.request.messages, sample.request.sampling, sample.answer]
    key = digest(canonical_json(asked))
    if key in samples:
        skipped["repeated"] += 1
    else:
        samples[key] = sample


def _samples(
    rows: Sequence[Any], source: Data, file_format: str, is_output: bool
) -> Iterator[Sample | str]:
    """Each row as a sample, or the reason why it is none."""
    for row in rows:
        if isinstance(row, BadLine):
            yield row.problem.kind
            continue
        request = _dialect(source, row, file_format).request(row)
        if isinstance(request, RowProblem):
            yield request.kind
        elif is_output and row["status"] != "ok":
            yield "unanswered"
        elif is_output and (row.get("tool_calls") or row.get("choices")):
            yield "no plain answer"
        else:
            yield _sample(row, request, source)


def _dialect(source: Data, row: Mapping[str, Any], file_format: str) -> Dialect:
    batch = source.format == "openai_batch" or {"custom_id", "body"} <= row.keys()
    columns = Columns(
        prompt=source.columns.prompt, messages=source.columns.messages, sampling=_IN_PROMPT
    )
    return Dialect(columns, "openai_batch" if batch else file_format, True, (), {}, ())


def _sample(row: Mapping[str, Any], request: Request, source: Data) -> Sample:
    answer = row.get(source.columns.response)
    label = row.get(source.columns.label) if source.columns.label else None
    kept = {name: request.sampling[name] for name in _IN_PROMPT if name in request.sampling}
    return Sample(
        replace(request, sampling=kept),
        answer if isinstance(answer, str) and answer else None,
        row.get("finish_reason") in (None, "stop"),
        None if label is None else str(label),
    )


def prompt_key(request: Request) -> bytes:
    """The same for prompts that ask the same: system prompts and spacing make no difference."""
    asked = [
        " ".join(text_of(turn.get("content")).split())
        for turn in request.messages
        if turn["role"] not in ("system", "developer")
    ]
    return digest(canonical_json(asked))


def encode(
    samples: Sequence[Sample],
    encode_prompt: Callable[[Request], Sequence[int] | None],
    encode_answer: Callable[[str, bool], Sequence[int]],
    max_length: int,
    use_answers: bool,
) -> tuple[list[Example], Counter[str]]:
    """Samples as tokens, and the rows left out by reason.

    Args:
        encode_prompt: the prompt with the chat template filled in; None where it cannot be.
        encode_answer: the answer's text; with the end of the turn if it is complete.
        max_length: rows longer than this are left out; a prompt needs room for one more token.
        use_answers: whether the data's answers are learned; otherwise examples have none yet.
    """
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for sample in samples:
        prompt = encode_prompt(sample.request)
        if prompt is None:
            skipped["template"] += 1
            continue
        known = use_answers and sample.answer is not None
        answer = encode_answer(sample.answer or "", sample.complete) if known else ()
        if len(prompt) + max(len(answer), 1) > max_length:
            skipped["longer than the context"] += 1
            continue
        ids = (*prompt, *answer)
        examples.append(Example(ids, len(prompt), prompt_key(sample.request), sample.label))
    return examples, skipped


def split(examples: Sequence[Example], config: Eval) -> dict[Part, list[Example]]:
    """Hold prompts out by a hash of their text: repeats of a prompt go where it goes.

    Raises:
        UsageProblem: too few are left to train on or to judge by.
    """
    keys = sorted(
        {e.key for e in examples}, key=lambda key: digest(key + str(config.seed).encode())
    )
    wanted = config.rows or round(len(keys) * (config.share or 0.1))
    if wanted < _FEW_KEPT or wanted >= len(keys):
        raise UsageProblem(
            f"data: {len(keys)} distinct prompts, of which eval holds out {wanted}; at least "
            f"{_FEW_KEPT} are needed to judge by and one to train on. To fix: add prompts, or set "
            "eval.rows"
        )
    half = wanted // 2
    place: dict[bytes, Part] = dict.fromkeys(keys[:half], "validation")
    place |= dict.fromkeys(keys[half:wanted], "test")
    parts: dict[Part, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples:
        parts[place.get(example.key, "train")].append(example)
    return parts


def step_batches(lengths: Sequence[int], batch_tokens: int, seed: int) -> Iterator[list[int]]:
    """The rows of step 0, 1, 2, ...: the same for the same seed, wherever one begins to look.

    Each pass over the data has an order of its own. A step takes rows until it holds
    `batch_tokens`, but always one.
    """
    for epoch in count():
        order = list(range(len(lengths)))
        Random(f"{seed} {epoch}").shuffle(order)
        batch: list[int] = []
        held = 0
        for row in order:
            if batch and held + lengths[row] > batch_tokens:
                yield batch
                batch, held = [], 0
            batch.append(row)
            held += lengths[row]
        yield batch


def batches_from(
    lengths: Sequence[int], batch_tokens: int, seed: int, step: int
) -> Iterator[list[int]]:
    """The same, beginning at a step."""
    return islice(step_batches(lengths, batch_tokens, seed), step, None)


def similar_lengths(rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Groups of rows that are padded together: little padding, yet few and large groups."""
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: lengths[row]):
        if not groups or lengths[row] > 1.5 * lengths[groups[-1][0]] + 8:
            groups.append([])
        groups[-1].append(row)
    return groups
