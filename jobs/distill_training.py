"""What Ray runs for a distillation: the teacher's answers, training workers, the comparison."""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device

from actors.chat_tokens import ChatTokens
from actors.distillation import Distillation, Point
from actors.greedy import greedy_answers
from actors.model_pair import ModelPair, Ranks
from actors.quantized_export import export
from actors.students import (
    check_heads,
    load_quantized,
    load_teacher,
    load_variant,
    quant_format,
    student_folder,
)
from jobs.distill_store import Store
from pipelines.distill_config import DistillConfig
from pipelines.errors import RunFailure

_STATE_FILE = "state.pt"
_PROGRESS_EVERY_S = 5.0


def answer_prompts(
    config: DistillConfig, prompts: Sequence[Sequence[int]], max_length: int
) -> list[list[int]]:
    """The teacher's greedy answers as token ids; a Ray task."""
    device = _task_device(config)
    return greedy_answers(load_teacher(config, device), prompts, config.max_new_tokens, max_length)


def fit(config: DistillConfig, name: str, objective: str, max_length: int) -> None:
    """Train to the end, from the last checkpoint if there is one.

    Raises:
        RunFailure: workers died more often than is allowed.
    """
    store, workers = Store(config), config.workers
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "name": name,
            "objective": objective,
            "max_length": max_length,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker=_resources(config),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=store.training_folder,
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="kl", checkpoint_score_order="min"
            ),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RunFailure(f"training {name}: {_last_words(error)}") from error
    best = result.get_best_checkpoint("kl", "min")
    latest = _read_state(Path(result.checkpoint.path))
    store.finish_training(name, best.path, latest["curve"])


def _train_worker(job: dict[str, Any]) -> None:
    """One worker of a training; Ray starts the same function on all of them."""
    config = DistillConfig.model_validate(job["config"])
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    _use_threads(config)
    distillation = _opened(config, job, ranks)
    watch = _Watch(Store(config), job["name"], config.train.steps, distillation.steps_done)
    while not distillation.finished:
        if distillation.check_due:
            point = distillation.check()
            _report(distillation, point, config)
            watch.checked(point, ranks)
        else:
            watch.stepped(distillation.step(), ranks)


def _opened(config: DistillConfig, job: dict[str, Any], ranks: Ranks) -> Distillation:
    device = get_device()
    teacher, student = load_teacher(config, device), load_quantized(config, device)
    for model in (teacher, student):
        check_heads(model)
    if config.train.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    decode = ChatTokens(student_folder(config)).decode
    pair = ModelPair(config, teacher, student, decode, job["max_length"], ranks)
    distillation = Distillation(pair, Store(config).load_examples(), job["objective"])
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            distillation.load_state_dict(_read_state(Path(folder)))
    return distillation


def _report(distillation: Distillation, point: Point, config: DistillConfig) -> None:
    """Hand a checkpoint to Ray; all workers meet here."""
    state, metrics = distillation.state_dict(), {"step": point.step, "kl": point.kl}
    if state is None:
        ray.train.report(metrics)
        return
    # Beside the checkpoints, where the check of the free disk has counted it.
    with tempfile.TemporaryDirectory(dir=Store(config).training_folder) as folder:
        torch.save(state, Path(folder, _STATE_FILE))
        ray.train.report(metrics, ray.train.Checkpoint.from_directory(folder))


class _Watch:
    """Lines about the progress, in a file that the driver reads; only of the first worker."""

    def __init__(self, store: Store, name: str, steps: int, first: int) -> None:
        self._path = store.progress_file(name)
        self._steps, self._first, self._done = steps, first, first
        self._started, self._told = time.monotonic(), 0.0

    def stepped(self, loss: float, ranks: Ranks) -> None:
        self._done += 1
        if time.monotonic() - self._told > _PROGRESS_EVERY_S:
            self._tell(ranks, loss=loss)

    def checked(self, point: Point, ranks: Ranks) -> None:
        self._tell(ranks, **asdict(point))

    def _tell(self, ranks: Ranks, **figures: Any) -> None:
        if ranks.rank:
            return
        self._told = time.monotonic()
        pace = (self._told - self._started) / max(self._done - self._first, 1)
        line = {**figures, "step": self._done, "steps": self._steps, "s_per_step": pace}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def measure(config: DistillConfig, names: Sequence[str], max_length: int) -> None:
    """Evaluate variants on the test rows, each as soon as it is loaded; a Ray task."""
    device, store = _task_device(config), Store(config)
    teacher, examples = load_teacher(config, device), store.load_examples()
    decode = ChatTokens(student_folder(config)).decode
    for name in names:
        student = load_variant(name, config, device, examples["train"], trained_state(store, name))
        pair = ModelPair(config, teacher, student, decode, max_length)
        store.save_measured(name, pair.evaluate(examples["test"]))


def export_student(config: DistillConfig, name: str) -> None:
    """Write the trained student in its low-bit format; a Ray task."""
    device, store = torch.device("cpu"), Store(config)
    student = load_quantized(config, device)
    student.load_state_dict(trained_state(store, name) or {})
    export(student, quant_format(config), Path(student_folder(config)), store.model_folder)


def in_task(config: DistillConfig, work: Any, *arguments: Any) -> ray.ObjectRef:
    """Call in a Ray task with the resources of one worker."""
    resources = _resources(config)
    options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0)}
    return ray.remote(**options, max_retries=0)(work).remote(config, *arguments)


def trained_state(store: Store, name: str) -> dict[str, Any] | None:
    """The weights of a training's best step; None where no training of that name has ended."""
    folder = store.best_checkpoint(name)
    if folder is None:
        return None
    weights: dict[str, Any] = _read_state(folder)["student"]
    return weights


def _read_state(folder: Path) -> dict[str, Any]:
    """Mapped, not read: most of it is the optimizer's, and a GPU has no room for a second copy."""
    path = Path(folder, _STATE_FILE)
    state: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return state


def _resources(config: DistillConfig) -> dict[str, float]:
    gpus = {"GPU": 1.0} if config.workers.use_gpu else {}
    return {"CPU": config.workers.num_cpus, **gpus}


def _task_device(config: DistillConfig) -> torch.device:
    _use_threads(config)
    return torch.device("cuda" if config.workers.use_gpu else "cpu")


def _use_threads(config: DistillConfig) -> None:
    """Ray gives a worker one thread for each CPU that it reserves, which is mostly one."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.workers.threads or max(cores // config.workers.num_workers, 1))


def _last_words(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
