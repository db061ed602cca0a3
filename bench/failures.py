"""A night of misfortune: broken rows, rows that kill the engine, and a kill from outside.

    python -m bench.failures --json

A thousand rows: twenty that no engine can answer, two that kill any engine that they enter, and
while they run one `kill -9` of the engine core. What is to come out: every good row answered,
exactly 22 error rows, and little generated twice. The same rows then go through `ray.data.llm`
(without the kill), with twice the time that ours took to come through.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import psutil
import pyarrow.dataset as ds

from bench.engine_parity import ours_command
from bench.peers import ENGINE_ARGS
from bench.poison import POISON

ROWS, TOKENS = 1000, 64
ARGUMENTS = {**ENGINE_ARGS, "logits_processors": ["bench.poison:Poison"]}
BROKEN: list[dict[str, Any]] = [
    {"prompt": "word " * 4000},
    {"prompt": ""},
    {"prompt": None},
    {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
    {"messages": []},
    {"messages": [{"role": "robot", "content": "x"}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"prompt": "x", "temperature": -1.0},
    {"prompt": "x", "temperature": 9.0},
    {"prompt": "x", "top_p": 0.0},
    {"prompt": "x", "max_tokens": 0},
    {"prompt": "x", "max_tokens": -5},
    {"prompt": "x", "max_tokens": 3, "min_tokens": 9},
    {"prompt": "x", "n": 0},
    {"prompt": "x", "stop": 7},
    {"prompt": "x", "seed": -1},
    {"prompt": "x", "response_format": {"type": "poem"}},
    {"prompt": "x", "structured_outputs": {"regex": "("}},
    {"prompt": "x", "structured_outputs": {"json": {"type": "nothing"}}},
]


def rows() -> list[dict[str, Any]]:
    """Good, broken and poisoned rows, mixed."""
    made: list[dict[str, Any]] = []
    for i in range(ROWS):
        text = f"Sort the numbers: {i} {(i * 7919) % 1000} {(i * 104729) % 997}"
        made.append({"prompt": text, "max_tokens": TOKENS, "min_tokens": TOKENS})
    for i, broken in enumerate(BROKEN):
        made[25 + 47 * i] = broken
    for i in (301, 702):
        made[i] = {"prompt": f"{POISON} {i}", "max_tokens": TOKENS, "min_tokens": TOKENS}
    return [{"id": f"r{i}", **row} for i, row in enumerate(made)]


def wrong_ids() -> set[str]:
    good = {"min_tokens": TOKENS}
    return {
        row["id"]
        for row in rows()
        if row.get("min_tokens") != good["min_tokens"] or POISON in row["prompt"]
    }


def ours(folder: Path, model: str) -> dict[str, Any]:
    command = ours_command(
        folder / "rows.jsonl", folder / "out", {"model": model, "engine_args": ARGUMENTS}
    )
    started = time.monotonic()
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kill_one_core(run, folder / "out/rows")
    out, err = run.communicate()
    if run.returncode != 3:
        raise click.ClickException(f"exit code {run.returncode}\n{err[-3000:]}")
    summary = json.loads(out)
    written = ds.dataset(folder / "out/rows").to_table(["row_id", "status", "completion_tokens"])
    status = dict(zip(written["row_id"].to_pylist(), written["status"].to_pylist(), strict=True))
    errors = {name for name, s in status.items() if s == "error"}
    (engine,) = summary["engines"]
    answered = sum(t or 0 for t in written["completion_tokens"].to_pylist())
    return {
        "lost": ROWS - len(status),
        "answered": summary["ok"],
        "wrong_errors": len(errors ^ wrong_ids()),
        "extra_tokens_share": round(engine["generated_tokens"] / answered - 1, 4),
        "deaths": engine["deaths"],
        "seconds": round(time.monotonic() - started, 1),
    }


def kill_one_core(run: "subprocess.Popen[str]", parts: Path) -> None:
    """`kill -9` the engine core once the first rows are committed."""
    while run.poll() is None and not list(parts.glob("part-*")):
        time.sleep(0.05)
    for process in psutil.process_iter():
        try:
            if "EngineCore" in " ".join(process.cmdline() or [process.name()]):
                process.kill()
                return
        except psutil.Error:
            continue


def ray_data_llm(folder: Path, model: str, patience_s: float) -> str:
    """What comes of the same rows there, in words."""
    command = [
        sys.executable, "-m", "bench.peers", "ray_data_llm", str(folder / "rows.jsonl"),
        "--model", model, "--engine-args", json.dumps(ARGUMENTS),
    ]  # fmt: skip
    with (folder / "peer.log").open("w") as log:
        peer = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = peer.wait(patience_s)
        except subprocess.TimeoutExpired:
            for process in (*psutil.Process(peer.pid).children(recursive=True), peer):
                process.kill()
            return f"not done after {patience_s:.0f} s, no row written"
    if code == 0:
        return "done"
    lines = [line for line in (folder / "peer.log").read_text().splitlines() if "Error" in line]
    return f"exit code {code}, no row written: {lines[-1][:160] if lines else ''}"


@click.command()
@click.option("--model", default="demo/models/large", show_default=True)
@click.option("--peer/--no-peer", default=True, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(model: str, peer: bool, as_json: bool) -> None:
    """Run ours once and `ray.data.llm` once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "rows.jsonl").open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows())
        result = ours(folder, model)
        if peer:
            result["ray_data_llm"] = ray_data_llm(folder, model, 2 * result["seconds"])
    if not as_json:
        for key, value in result.items():
            click.echo(f"{key:20} {value}")
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
