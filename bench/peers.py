"""Peers of the main job, each run as a process of its own so that all start alike.

    python -m bench.peers generate rows.jsonl --model demo/models/small
    python -m bench.peers ray_data_llm rows.jsonl --model demo/models/small
    python -m bench.peers run_batch rows.jsonl --model demo/models/small

Each prints one JSON object: for each file the seconds from the engine's first request to its
last answer, and the share of prompt tokens that it read from its prefix cache where it tells.
`--engine-args '{}'` leaves all arguments at the engine's defaults. `generate` is one
`vllm.LLM.generate` call over all prompts, their chat template applied beforehand: the upper
bound of what the engine does when everything is there at once.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

SEQS, TOKENS = 256, 4096
ENGINE_ARGS = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": SEQS,
    "max_num_batched_tokens": TOKENS,
}


def read_rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def sampling(row: dict[str, Any]) -> dict[str, Any]:
    names = ("max_tokens", "min_tokens", "temperature", "top_p", "n", "stop", "seed")
    return {"temperature": 0.0} | {name: row[name] for name in names if name in row}


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    return row.get("messages") or [{"role": "user", "content": row["prompt"]}]


engine_args_option = click.option(
    "--engine-args", default=json.dumps(ENGINE_ARGS), callback=lambda _c, _p, v: json.loads(v)
)


@click.group()
def main() -> None:
    """Run one peer over a JSONL file of prompts."""
    # As much as our tier's default; vLLM's own takes half the machine.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"


@main.command()
@click.argument("rows", nargs=-1, type=click.Path(exists=True))
@click.option("--model", required=True)
@engine_args_option
def generate(rows: tuple[str, ...], model: str, engine_args: dict[str, Any]) -> None:
    """One `LLM.generate` call per file, on one warm engine."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, **engine_args)
    tokenizer = llm.get_tokenizer()
    seconds, cached = [], []
    for path in rows:
        read = read_rows(path)
        prompts = [
            tokenizer.apply_chat_template(messages(row), add_generation_prompt=True, tokenize=False)
            for row in read
        ]
        params = [SamplingParams(**sampling(row)) for row in read]
        llm.generate(prompts[:8], params[:8], use_tqdm=False)
        started = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.monotonic() - started)
        assert len(outputs) == len(read)
        prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        cached.append(sum(output.num_cached_tokens or 0 for output in outputs) / prompt_tokens)
    click.echo(json.dumps({"seconds": seconds, "cached": cached}))


@main.command("ray_data_llm")
@click.argument("rows", type=click.Path(exists=True))
@click.option("--model", required=True)
@click.option("--batch-size", default=64)
@click.option("--concurrent-batches", default=8)
@engine_args_option
def ray_data_llm(
    rows: str, model: str, batch_size: int, concurrent_batches: int, engine_args: dict[str, Any]
) -> None:
    """`ray.data.llm` with its vLLM engine processor."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    # Its five stages reserve a CPU each; fewer logical ones and none of them would start.
    ray.init(num_cpus=8, log_to_driver=False, include_dashboard=False)
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=engine_args,
        batch_size=batch_size,
        max_concurrent_batches=concurrent_batches,
        concurrency=1,
        accelerator_type=None,
        placement_group_config={"bundles": [{"CPU": 1}]},
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "messages": messages(row),
            "sampling_params": sampling(row),
        },
        postprocess=lambda row: {
            "text": row["generated_text"],
            "finished": time.time(),
            "taken": row["time_taken_llm"],
        },
    )
    dataset = processor(ray.data.read_json(rows, file_extensions=["jsonl"]))
    done = dataset.take_all()
    assert len(done) == len(read_rows(rows))
    first = min(row["finished"] - row["taken"] for row in done)
    seconds = max(row["finished"] for row in done) - first
    click.echo(json.dumps({"seconds": [seconds]}))


@main.command("run_batch")
@click.argument("rows", type=click.Path(exists=True))
@click.option("--model", required=True)
def run_batch(rows: str, model: str) -> None:
    """`vllm run-batch` with its defaults; the time is that of its process."""
    with tempfile.TemporaryDirectory() as folder:
        requests, answers = Path(folder, "requests.jsonl"), Path(folder, "answers.jsonl")
        with requests.open("w") as file:
            for row in read_rows(rows):
                body = {"model": model, "messages": messages(row), **sampling(row)}
                line = {"custom_id": row["id"], "method": "POST", "body": body}
                file.write(json.dumps({**line, "url": "/v1/chat/completions"}) + "\n")
        started = time.monotonic()
        command = ["-i", str(requests), "-o", str(answers), "--model", model]
        # The `vllm` command of the CPU build does not find its own version.
        module = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch"]
        subprocess.run([*module, *command], check=True, stdout=sys.stderr)
        seconds = time.monotonic() - started
        assert len(answers.read_text().splitlines()) == len(read_rows(rows))
    click.echo(json.dumps({"seconds": [seconds]}))


if __name__ == "__main__":
    main()
