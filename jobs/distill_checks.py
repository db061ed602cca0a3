"""Everything about a distillation that can be found wrong before a model is loaded."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.distill_config import DistillConfig
from pipelines.distill_data import Example, Part, encode, read_data, split
from pipelines.errors import UsageProblem
from pipelines.keys import canonical_json, digest
from pipelines.quant_formats import format_problem
from pipelines.storage import Directory

_STATE_BYTES = 12
"""Of one weight in a checkpoint: itself and AdamW's two moments, all float32."""
_EXPORT_BYTES = 2
"""At most, of one weight in the exported model."""
_DECIDES_TRAINING = (
    "teacher", "student", "format", "answers", "objective", "max_length", "max_new_tokens",
    "eval", "train",
)  # fmt: skip


@dataclass(frozen=True)
class DistillPlan:
    """A distillation that may start.

    Attributes:
        parts: rows by what they are for; those without an answer wait for the teacher's.
        skipped: rows left out, by reason.
        max_length: prompt and answer together, in tokens.
        identity: the same for configurations and data that give the same student.
    """

    config: DistillConfig
    parts: dict[Part, list[Example]]
    skipped: Counter[str]
    max_length: int
    identity: str


def plan_distillation(config: DistillConfig) -> DistillPlan:
    """Look at models, data and disk; load and start nothing.

    Raises:
        UsageProblem: whatever would make the job fail later, with the remedy.
    """
    from actors.chat_tokens import ChatTokens
    from actors.students import linear_shapes, model_shape, quant_format, student_folder

    config = _with_absolute_paths(config)
    directory = check_output(config)
    teacher, student = ChatTokens(config.teacher), ChatTokens(student_folder(config))
    for tokens in (teacher, student):
        tokens.check()
    if difference := teacher.difference(student):
        raise UsageProblem(
            f"student: {config.student}: its tokenizer is not the teacher's: {difference}; "
            "distillation compares the two models token by token, choose a student of the same "
            "family"
        )
    shape = model_shape(student_folder(config))
    if problem := format_problem(quant_format(config), linear_shapes(shape)):
        raise UsageProblem(f"format: {problem}")
    weights = sum(weight.numel() for weight in shape.parameters())
    check_disk(directory, bytes_needed(weights, "cross_entropy" in config.baselines))
    contexts = [shape, model_shape(config.teacher)]
    max_length = _max_length(config, [m.config.max_position_embeddings for m in contexts])
    samples, skipped, versions = read_data(config.data, config.storage)
    examples, unfit = encode(
        samples,
        student.encode_prompt,
        student.encode_answer,
        max_length,
        use_answers=config.answers == "data",
    )
    parts = split(examples, config.eval)
    if len(parts["train"]) < config.workers.num_workers:
        raise UsageProblem(
            f"workers.num_workers: {config.workers.num_workers}, but there are only "
            f"{len(parts['train'])} rows to train on; lower it or add prompts"
        )
    return DistillPlan(
        config, parts, skipped + unfit, max_length, _identity(config, versions, max_length)
    )


def check_output(config: DistillConfig) -> Directory:
    """Raises: UsageProblem if the output is no folder that can be written."""
    if "://" in config.output:
        raise UsageProblem(
            f"output: {config.output}: must be a folder; workers on several machines need a "
            "shared one"
        )
    directory = Directory(config.output, config.storage)
    try:
        directory.write(".nightmill/writable", b"")
        directory.remove(".nightmill/writable")
    except OSError as error:
        raise UsageProblem(
            f"output: {config.output}: cannot be written ({error}); choose another folder or "
            "mend its permissions"
        ) from error
    return directory


def bytes_needed(weights: int, two_trainings: bool) -> int:
    """At the most: of each training its best and latest checkpoint, one in two copies on its
    way, and the export."""
    kept = 2 * (1 + two_trainings)
    return weights * (_STATE_BYTES * (kept + 2) + _EXPORT_BYTES)


def check_disk(directory: Directory, needed: int) -> None:
    """Raises: UsageProblem if checkpoints and export would not fit."""
    free = shutil.disk_usage(directory.root).free
    if free < needed:
        raise UsageProblem(
            f"output: {directory.url}: has {free / 1e9:.1f} GB free and checkpoints with the "
            f"export may take {needed / 1e9:.1f} GB; free some or choose another folder"
        )


def _with_absolute_paths(config: DistillConfig) -> DistillConfig:
    """Workers run in folders of their own.

    Raises:
        UsageProblem: a model's folder is missing.
    """
    changed: dict[str, Any] = {"output": os.path.abspath(config.output)}
    if "://" in config.output:
        changed = {}
    for key in ("teacher", "student"):
        folder = getattr(config, key)
        if folder is None:
            continue
        if not Path(folder, "config.json").is_file():
            raise UsageProblem(
                f"{key}: {folder}: holds no config.json; give the folder of a model, relative "
                f"ones start at {os.getcwd()}"
            )
        changed[key] = os.path.abspath(folder)
    return config.model_copy(update=changed)


def _max_length(config: DistillConfig, contexts: Sequence[int]) -> int:
    context = min(contexts)
    if config.max_length is not None and config.max_length > context:
        raise UsageProblem(
            f"max_length: {config.max_length}, but the models' context is {context}; lower it"
        )
    return config.max_length or context


def _identity(config: DistillConfig, versions: Sequence[str], max_length: int) -> str:
    decides = config.model_dump(mode="json", include=set(_DECIDES_TRAINING))
    columns = [source.model_dump(mode="json") for source in config.data]
    return digest(canonical_json([decides, columns, list(versions), max_length])).hex()
