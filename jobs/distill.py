"""`nightmill distill`: teach a low-bit student, and let it leave only if that was worth it.

The same command again goes on where it stopped: answers, checkpoints and measurements lie in the
output folder as soon as they exist.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray

from jobs.cluster import connect
from jobs.distill_checks import DistillPlan, plan_distillation
from jobs.distill_store import Store
from jobs.run_state import Lock
from pipelines.config_file import dump_config
from pipelines.distill_config import DistillConfig
from pipelines.distill_data import Example, Part
from pipelines.errors import EXIT_ERRORS, EXIT_OK
from pipelines.publish import BF16, PTQ, STUDENT, Measured, Verdict, judge

Say = Callable[[str], None]
CROSS_ENTROPY = "cross_entropy"
_ANSWERS_AT_ONCE = 2048
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a distillation ended.

    Attributes:
        rows: held-out and trained rows, by part.
        skipped: rows left out, by reason.
        curves: of each training, its points.
        model: the exported folder, if the gate let it leave.
        size_bytes, source_bytes: of the exported weights and of the student's before.
    """

    config: DistillConfig
    rows: dict[str, int]
    skipped: dict[str, int]
    measured: dict[str, Measured]
    curves: dict[str, list[dict[str, Any]]]
    verdict: Verdict
    model: str | None
    size_bytes: int | None
    source_bytes: int

    @property
    def exit_code(self) -> int:
        return EXIT_OK if self.verdict.publish else EXIT_ERRORS

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            **asdict(self),
            "config": self.config.model_dump(mode="json"),
            "published": self.verdict.publish,
        }


def distill(config: DistillConfig, say: Say) -> Outcome:
    """Train, measure, judge, and export what passes.

    Raises:
        UsageProblem: before training, whatever makes it impossible or pointless.
        RunFailure: training ended without a student.
    """
    plan = plan_distillation(config)
    config = plan.config
    store = Store(config)
    with Lock(store.directory).held():
        resumed = store.open(plan.identity)
        store.directory.write("resolved.yaml", dump_config(config).encode())
        say(_opening(plan, resumed))
        connect()
        _prepare(plan, store, say)
        _train(plan, store, say)
        _measure(plan, store, say)
        return _settle(plan, store, say)


def _opening(plan: DistillPlan, resumed: bool) -> str:
    counts = ", ".join(f"{len(rows):,} {part}" for part, rows in plan.parts.items())
    left_out = ", ".join(f"{n:,} {reason}" for reason, n in plan.skipped.items())
    begins = "goes on" if resumed else "begins"
    return f"{begins}: rows {counts}" + (f"; left out {left_out}" if left_out else "")


def _prepare(plan: DistillPlan, store: Store, say: Say) -> None:
    """Give every row an answer, and lay the rows where workers find them."""
    waiting = [e for rows in plan.parts.values() for e in rows if not e.answer_tokens]
    answers: dict[Example, tuple[int, ...]] = {}
    for number, start in enumerate(range(0, len(waiting), _ANSWERS_AT_ONCE)):
        batch = waiting[start : start + _ANSWERS_AT_ONCE]
        made = store.answers(number)
        if made is None:
            say(f"teacher: answers {start:,} to {start + len(batch):,} of {len(waiting):,}")
            made = _in_task(plan, "answer_prompts", [e.ids for e in batch], plan.max_length)
            store.save_answers(number, made)
        answers |= {e: tuple(tokens) for e, tokens in zip(batch, made, strict=True)}
    parts: dict[Part, list[Example]] = {
        part: [replace(e, ids=e.ids + answers.get(e, ())) for e in rows]
        for part, rows in plan.parts.items()
    }
    store.save_examples(parts)


def _train(plan: DistillPlan, store: Store, say: Say) -> None:
    from jobs.distill_training import fit

    trainings: dict[str, str] = {STUDENT: plan.config.objective}
    if CROSS_ENTROPY in plan.config.baselines:
        trainings[CROSS_ENTROPY] = CROSS_ENTROPY
    for name, objective in trainings.items():
        if store.best_checkpoint(name) is None:
            with _told(store.progress_file(name), partial(_progress, name, say)):
                fit(plan.config, name, objective, plan.max_length)


def _measure(plan: DistillPlan, store: Store, say: Say) -> None:
    missing = [name for name in variants(plan.config) if store.measured(name) is None]
    if missing:
        say(f"measuring {', '.join(missing)} on {len(plan.parts['test']):,} test rows")
        _in_task(plan, "measure", missing, plan.max_length)


def variants(config: DistillConfig) -> list[str]:
    """The rows of the report's table, from the whole model to the student."""
    wanted = {PTQ, *config.baselines}
    if config.format.kind != "int4":
        wanted.discard("gptq")
    others = [name for name in ("rtn", PTQ, "gptq", CROSS_ENTROPY) if name in wanted]
    return [BF16, *others, STUDENT]


def _settle(plan: DistillPlan, store: Store, say: Say) -> Outcome:
    from jobs.distill_report import model_card, report_page

    config = plan.config
    measured = {name: found for name in variants(config) if (found := store.measured(name))}
    verdict = judge(measured, config.publish)
    if verdict.publish and not store.model_folder.exists():
        say(f"exporting to {store.model_folder}")
        _in_task(plan, "export_student", STUDENT)
    if not verdict.publish:
        # It left under an earlier gate.
        store.directory.remove("model")
    exported = store.model_folder if verdict.publish else None
    outcome = Outcome(
        config=config,
        rows={part: len(rows) for part, rows in plan.parts.items()},
        skipped=dict(plan.skipped),
        measured=measured,
        curves={name: curve for name in variants(config) if (curve := store.curve(name))},
        verdict=verdict,
        model=str(exported) if exported else None,
        size_bytes=_weight_bytes(exported) if exported else None,
        source_bytes=_weight_bytes(Path(config.student or config.teacher)),
    )
    store.directory.write("distill.json", json.dumps(outcome.as_dict(), indent=2).encode())
    store.directory.write("report.html", report_page(outcome).encode())
    if exported:
        store.directory.write("model/README.md", model_card(outcome).encode())
    return outcome


def _in_task(plan: DistillPlan, work: str, *arguments: Any) -> Any:
    from jobs import distill_training

    task = distill_training.in_task(plan.config, getattr(distill_training, work), *arguments)
    return ray.get(task)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@contextmanager
def _told(path: Path, tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Tell each new line of a file while something runs."""
    path.touch()
    ended = Event()

    def follow() -> None:
        with path.open() as file:
            file.seek(0, 2)
            last = False
            while not last:
                last = ended.wait(_LOOK_EVERY_S)
                for line in file:
                    tell(json.loads(line))

    thread = Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _progress(name: str, say: Say, line: dict[str, Any]) -> None:
    left = (line["steps"] - line["step"]) * line["s_per_step"]
    parts = [f"{name} step {line['step']:,}/{line['steps']:,}"]
    if line.get("loss") is not None:
        parts.append(f"loss {line['loss']:.5f}")
    if "kl" in line:
        parts.append(f"held-out KL {line['kl']:.5f}, top-1 {100 * line['top1']:.1f} %")
    if line.get("score") is not None:
        parts.append(f"exact match {100 * line['score']:.1f} %")
    if line["step"]:
        parts.append(f"{line['s_per_step']:.2f} s/step, {left / 60:.1f} min left")
    say(", ".join(parts))
