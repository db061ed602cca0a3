"""vLLM's benchmark client, imported where vLLM is installed."""

import json
import subprocess
from pathlib import Path

import pytest
from serving import PYTHON, Endpoint

BENCHMARK = """
import argparse, asyncio, json, sys
from vllm.benchmarks.serve import add_cli_args, main_async
parser = argparse.ArgumentParser()
add_cli_args(parser)
result = asyncio.run(main_async(parser.parse_args(sys.argv[2:])))
open(sys.argv[1], "w").write(json.dumps(result, default=str))
"""


@pytest.mark.parametrize(
    ("backend", "path", "model"),
    [
        ("openai-chat", "/v1/chat/completions", "small"),
        ("openai", "/v1/completions", "small"),
        ("openai-embeddings", "/v1/embeddings", "vectors"),
    ],
)
def test_every_request_of_a_benchmark_is_answered(
    endpoint: Endpoint, tmp_path: Path, backend: str, path: str, model: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"Write in upper case: {backend} tree {i}"} for i in range(24)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = {
        "backend": backend,
        "base-url": endpoint.address,
        "endpoint": path,
        "model": model,
        "tokenizer": endpoint.tokenizer,
        "header": f"Authorization=Bearer {endpoint.key}",
        "dataset-name": "custom",
        "dataset-path": prompts,
        "custom-output-len": 16,
        "num-prompts": len(lines),
        "max-concurrency": 8,
    }
    options = [f"--{name}={value}" for name, value in asked.items()]
    switches = ["--disable-shuffle", "--skip-chat-template", "--disable-tqdm"]
    if backend == "openai-embeddings":
        # It would ask for texts to be cut to the model's length, which nightmill never does.
        switches += ['--extra-body={"truncate_prompt_tokens": null}']
    else:
        switches += ["--ignore-eos", "--temperature=0"]
    told = tmp_path / "result.json"
    command = [PYTHON, "-c", BENCHMARK, str(told), *options, *switches]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    result = json.loads(told.read_text())
    assert result["completed"] == len(lines), done.stdout[-3000:]
    if backend != "openai-embeddings":
        assert result["total_output_tokens"] == 16 * len(lines)
        assert result["median_ttft_ms"] > 0
