"""Rows that share long prefixes, shuffled: is a prefix computed once?

    python -m bench.shared_prefix --json

3,000 rows over 24 system prompts of 400 to 800 tokens, in random order, answers of 8 tokens.
Ours is the whole main job, from JSONL to priced Parquet; `ray.data.llm` and one `LLM.generate`
call have the same engine arguments. Timed from the engine's first request to its last answer.
`cached_share` is the part of the prompt tokens that could have come from the prefix cache which
did: all whole cache blocks of a prefix but for the first row that has it.
"""

import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
import pyarrow.dataset as ds

from bench.engine_parity import peer, ratio, run_ours, show
from bench.peers import ENGINE_ARGS

ROWS, PREFIXES, TOKENS = 3000, 24, 8
CACHE_BLOCK = 32
"""Tokens in a block of the KV cache, as our tier has it on a CPU; vLLM's own default is 128."""


def write_rows(path: Path, model: str, block: int) -> int:
    """Write the rows; returns how many of their prompt tokens a prefix cache could serve."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    draw = random.Random(11)
    prefixes = [_prefix(tokenizer, draw) for _ in range(PREFIXES)]
    rows = [_row(i, prefixes[i % PREFIXES]) for i in range(ROWS)]
    draw.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole_blocks = sum(_shared(tokenizer, prefix) // block for prefix in prefixes)
    return whole_blocks * block * (ROWS // PREFIXES - 1)


def _shared(tokenizer: Any, prefix: str) -> int:
    """Tokens that all prompts with this prefix begin with, those of the template included."""
    a, b = (
        tokenizer.apply_chat_template(_row(i, prefix)["messages"], return_dict=False)
        for i in range(2)
    )
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def _row(i: int, prefix: str) -> dict[str, Any]:
    turns = [{"role": "system", "content": prefix}]
    turns.append({"role": "user", "content": f"Sort the numbers: {i} {(i * 7919) % 1000}"})
    return {"id": f"r{i}", "messages": turns, "max_tokens": TOKENS, "min_tokens": TOKENS}


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text)["input_ids"])


def _prefix(tokenizer: Any, draw: random.Random) -> str:
    words = ["apple", "tree", "mouse", "river", "stone", "answer", "short", "list", "first"]
    text, wanted = "Rules of this desk:", draw.randint(400, 800)
    while _tokens(tokenizer, text) < wanted:
        text += " " + " ".join(draw.choice(words) for _ in range(8))
    return text


def cached_tokens(output: str) -> int:
    table = ds.dataset(f"{output}/rows").to_table(["cached_prompt_tokens"])
    return sum(table["cached_prompt_tokens"].to_pylist())


@click.command()
@click.option("--model", default="demo/models/large", show_default=True)
@click.option("--block-size", type=int, help="Of the KV cache, for all; else each one's default.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(model: str, block_size: int | None, repeats: int, as_json: bool) -> None:
    """Take turns REPEATS times; the ratios are medians of those within a turn."""
    rates: dict[str, list[float]] = {}
    shares = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "rows.jsonl")
        cacheable = write_rows(path, model, block_size or CACHE_BLOCK)
        arguments = {**ENGINE_ARGS, **({"block_size": block_size} if block_size else {})}
        options = ["--engine-args", json.dumps(arguments)]
        for _ in range(repeats):
            engine = {"model": model, "engine_args": arguments}
            summary = run_ours(path, Path(name), engine)
            rates.setdefault("ours", []).append(ROWS / summary["engines"][0]["active_s"])
            shares.append(cached_tokens(summary["output"]) / cacheable)
            for title, command in (("ray.data.llm", "ray_data_llm"), ("LLM.generate", "generate")):
                (seconds,) = peer(command, [path], model, *options)["seconds"]
                rates.setdefault(title, []).append(ROWS / seconds)
            click.echo({k: round(v[-1], 1) for k, v in rates.items()}, err=True)
    show(rates, "rows/s")
    result = {
        "ours_rps": round(statistics.median(rates["ours"]), 1),
        "ray_data_llm_rps": round(statistics.median(rates["ray.data.llm"]), 1),
        "ratio": ratio(rates["ours"], rates["ray.data.llm"]),
        "generate_ratio": ratio(rates["ours"], rates["LLM.generate"]),
        "cached_share": round(statistics.median(shares), 3),
    }
    click.echo(json.dumps(result, indent=None if as_json else 1))


if __name__ == "__main__":
    main()
