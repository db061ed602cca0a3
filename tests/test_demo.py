"""The demo as it ships: prompts, models, and the main job over both with real engines."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, write_jsonl

PROMPTS = [json.loads(line) for line in (ROOT / "demo/prompts.jsonl").read_text().splitlines()]
MODELS = ROOT / "demo/models"


def test_the_prompts_are_as_described() -> None:
    assert len(PROMPTS) == 3000
    assert len({row["id"] for row in PROMPTS}) == 3000
    broken = [row for row in PROMPTS if row.get("broken")]
    assert len(broken) == 12
    good = [row for row in PROMPTS if not row.get("broken")]
    asked = Counter(json.dumps([r.get("prompt"), r.get("messages"), r["max_tokens"]]) for r in good)
    assert 900 <= len(good) - len(asked) <= 1100, "about a third are exact duplicates"
    assert len({row["family"] for row in good}) >= 10
    assert {row["difficulty"] for row in good} == {"easy", "hard"}
    assert all(row["label"] for row in good)


def test_the_models_fit_their_budget() -> None:
    size = sum(f.stat().st_size for f in MODELS.rglob("*") if f.is_file())
    assert size <= 16_000_000


def command(folder: Path, output: str) -> dict[str, Any]:
    """`nightmill run configs/demo.yaml` over some of the demo's rows, as a person would."""
    done = subprocess.run(
        [
            sys.executable, "-m", "jobs.cli", "run", "configs/demo.yaml", "--json",
            "--input", str(folder / "prompts.jsonl"), "--output", str(folder / output),
            "--set", f"response_cache.path={folder / 'cache'}",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.mark.timeout(600)
def test_the_demo_answers_prices_and_remembers(tmp_path: Path) -> None:
    broken = [row for row in PROMPTS if row.get("broken")]
    rows = [row for row in PROMPTS if not row.get("broken")][:250] + broken
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    first = command(tmp_path, "first")
    assert (first["rows"], first["errors"]) == (262, 12)
    assert first["by_error"]["context_length"] == 1
    assert set(first["by_tier"]) == {"small", "large"}
    assert 0 < first["bill_usd"] < first["baseline_usd"]
    parts = (tmp_path / "first/rows").glob("*.parquet")
    table = pa.concat_tables([pq.read_table(part) for part in parts])
    assert sorted(table["row_id"].to_pylist()) == sorted(row["id"] for row in rows)
    answered = table.filter(pc.equal(table["status"], "ok"))
    right = pc.mean(pc.equal(answered["response"], answered["label"]).cast(pa.float64())).as_py()
    assert right >= 0.85

    second = command(tmp_path, "second")
    assert "generated" not in second["by_source"]
    assert second["bill_usd"] == 0
    assert second["saved_usd"] == second["baseline_usd"] == first["baseline_usd"]
    # The row beyond the context must ask its tokenizer; no other row starts an engine.
    assert sum(engine["busy_s"] for engine in second["engines"]) == 0
