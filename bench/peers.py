"""Peers of the main job, each run as a process of its own so that all start alike.

    python -m bench.peers generate rows.jsonl --model demo/models/small
    python -m bench.peers ray_data_llm rows.jsonl --model demo/models/small

Each prints one JSON object: for each file the seconds from the engine's first request to its
last answer. `generate` is one `vllm.LLM.generate` call over all prompts, their chat template
applied beforehand: the upper bound of what the engine does when everything is there at once.
"""

import json
import os
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
    return {"temperature": 0.0, "max_tokens": row["max_tokens"], "min_tokens": row["min_tokens"]}


@click.group()
def main() -> None:
    """Run one peer over a JSONL file of prompts."""
    # As much as our tier's default; vLLM's own takes half the machine.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"


@main.command()
@click.argument("rows", nargs=-1, type=click.Path(exists=True))
@click.option("--model", required=True)
def generate(rows: tuple[str, ...], model: str) -> None:
    """One `LLM.generate` call per file, on one warm engine."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, **ENGINE_ARGS)
    tokenizer = llm.get_tokenizer()
    seconds = []
    for path in rows:
        read = read_rows(path)
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for row in read
        ]
        params = [SamplingParams(**sampling(row)) for row in read]
        llm.generate(prompts[:8], params[:8], use_tqdm=False)
        started = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.monotonic() - started)
        assert len(outputs) == len(read)
    click.echo(json.dumps({"seconds": seconds}))


@main.command("ray_data_llm")
@click.argument("rows", type=click.Path(exists=True))
@click.option("--model", required=True)
@click.option("--batch-size", default=64)
@click.option("--concurrent-batches", default=8)
def ray_data_llm(rows: str, model: str, batch_size: int, concurrent_batches: int) -> None:
    """`ray.data.llm` with its vLLM engine processor."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    # Its five stages reserve a CPU each; fewer logical ones and none of them would start.
    ray.init(num_cpus=8, log_to_driver=False, include_dashboard=False)
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=ENGINE_ARGS,
        batch_size=batch_size,
        max_concurrent_batches=concurrent_batches,
        concurrency=1,
        accelerator_type=None,
        placement_group_config={"bundles": [{"CPU": 1}]},
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": row["prompt"]}],
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


if __name__ == "__main__":
    main()
