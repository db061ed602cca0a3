"""`nightmill plan`: the same input planned and run."""

import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from conftest import PRICE, ROOT, MakeConfig, tier, write_jsonl

from jobs.batch import run
from jobs.cli import main
from jobs.forecast import RunForecast, forecast_run
from jobs.preflight import plan_run
from jobs.survey import survey
from pipelines.config import RunConfig
from pipelines.config_file import dump_config
from pipelines.intake import read_block
from pipelines.storage import Directory, open_filesystem

pytestmark = pytest.mark.usefixtures("ray_here")


def prompts(rows: int, distinct: int) -> list[dict[str, Any]]:
    """Of one to eight words each; the first ones repeat."""
    texts = [" ".join(f"w{i}" for _ in range(1 + i % 8)) for i in range(distinct)]
    return [{"id": str(i), "prompt": texts[i % distinct]} for i in range(rows)]


def plan(config: RunConfig, tmp_path: Path, *arguments: object) -> Result:
    file = tmp_path / "planned.yaml"
    file.write_text(dump_config(config))
    return CliRunner().invoke(main, ["plan", str(file), *map(str, arguments)])


def within(found: RunForecast, usd: float) -> bool:
    return found.figures.cost_usd.low - 1e-9 <= usd <= found.figures.cost_usd.high + 1e-9


def test_a_run_does_what_was_planned(tmp_path: Path, make_config: MakeConfig) -> None:
    bad = [{"id": "bad", "prompt": ""}, {"id": "also", "prompt": None}]
    config = make_config([*prompts(300, 200), *bad], sampling={"max_tokens": 9})
    before = forecast_run(config, size=1000)
    assert not Directory(str(tmp_path / "out"), config.storage).parts("rows"), "nothing is asked"
    summary = run(config)
    assert (before.rows, before.bad) == (summary.rows, summary.errors)
    assert (before.requests, before.repeats) == (200, summary.by_source["duplicate"])
    assert before.figures.cost_usd.expected is None, "nobody knows how long answers are"
    assert within(before, summary.bill_usd)
    assert before.figures.tiers["only"].prompt_tokens.expected == summary.prompt_tokens
    # The same once more, told how long answers were.
    again = config.model_copy(
        update={"output": config.output.model_copy(update={"path": str(tmp_path / "again")})}
    )
    after = forecast_run(again, 1000, [str(tmp_path / "out")])
    assert after.figures.cost_usd.expected == pytest.approx(summary.bill_usd, rel=0.01)
    assert after.figures.baseline_usd is not None
    assert after.figures.baseline_usd.expected == pytest.approx(summary.baseline_usd, rel=0.05)
    assert after.saving == pytest.approx(summary.saved_usd / summary.baseline_usd, abs=0.05)


def test_what_is_done_is_not_planned_again(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(
        prompts(200, 100),
        budget_usd=5e-4,
        sampling={"max_tokens": 9},
        input={"path": str(tmp_path / "prompts.jsonl"), "block_rows": 20},
    )
    summary = run(config)
    assert 0 < summary.pending < 200
    left = forecast_run(config, size=1000)
    assert left.rows == summary.pending
    assert left.done == 200 - summary.pending
    assert left.requests == 100 - summary.by_source["generated"]
    rest = run(config.model_copy(update={"budget_usd": None}))
    assert within(left, rest.bill_usd - summary.bill_usd)
    done = forecast_run(config, size=1000)
    assert (done.rows, done.requests, done.figures.cost_usd.high) == (0, 0, 0)


def test_what_a_killed_start_has_answered_is_known(make_config: MakeConfig) -> None:
    config = make_config(prompts(200, 100))
    config = config.model_copy(
        update={"input": config.input.model_copy(update={"block_rows": 100})}
    )
    learned = plan_run(config, date(2026, 1, 1))
    directory = Directory(config.output.path, config.storage)
    first, second = learned.blocks
    fs, _ = open_filesystem(config.input.path, config.storage)
    rows = read_block(first, learned.dialect, learned.schema, learned.policy, fs)
    status = ["ok"] * 90 + ["error"] * 10
    answered = pa.table({"request_key": rows["request_key"], "status": status})
    directory.write_table("rows/part-0.parquet", answered)
    found = survey(learned, [second], directory, size=50)
    assert (found.known, found.requests) == (90, 10)


def test_what_the_response_cache_has_costs_nothing(tmp_path: Path, make_config: MakeConfig) -> None:
    cached = {"response_cache": {"path": str(tmp_path / "cache")}}
    run(make_config(prompts(60, 60), **cached))
    config = make_config(prompts(100, 100), output={"path": str(tmp_path / "next")}, **cached)
    found = forecast_run(config, size=1000)
    assert found.figures.hits.expected == 60
    assert found.figures.tiers["only"].requests.expected == 40
    assert run(config).by_source["generated"] == 40


def test_a_sample_is_one_of_requests_however_often_each_is_asked(make_config: MakeConfig) -> None:
    """A prompt of eight words that half of all rows ask, beside 400 of one word."""
    rows = [{"id": str(i), "prompt": f"word{i}"} for i in range(400)]
    rows += [{"id": f"x{i}", "prompt": "a b c d e f g h"} for i in range(400)]
    config = make_config(rows)
    learned = plan_run(config, date(2026, 1, 1))
    directory = Directory(config.output.path, config.storage)
    found = survey(learned, learned.blocks, directory, size=50)
    assert found.requests == 401
    assert found.sample.num_rows == len(found.times) == 50
    assert sum(times > 1 for times in found.times) <= 1
    every = survey(learned, learned.blocks, directory, size=1000)
    assert sorted(every.times)[-2:] == [1, 400]
    assert sum(every.times) == 800


def test_answers_that_may_differ_are_paid_for_each(make_config: MakeConfig) -> None:
    config = make_config(prompts(90, 30), sampling={"temperature": 1.0})
    assert forecast_run(config, size=1000).requests == 90
    assert forecast_run(make_config(prompts(90, 30), dedup=False), size=1000).requests == 90


def test_an_input_of_many_blocks_is_planned_as_one_of_few(make_config: MakeConfig) -> None:
    """Beyond what is read in this process."""
    rows = prompts(24_000, 18_000)
    found = forecast_run(make_config(rows, sampling={"max_tokens": 1}), size=500)
    assert (found.requests, found.repeats, found.sampled) == (18_000, 6_000, 500)
    truth = sum(len(row["prompt"].split()) for row in rows[:18_000])
    told = found.figures.tiers["only"].prompt_tokens
    assert told.low < truth < told.high
    assert told.expected == pytest.approx(truth, rel=0.1)


def test_how_far_rows_climb_is_told_by_a_run_of_the_same_route(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    cheap = tier("cheap", replies=[{"regex": "w[13579]\\b", "response": "no"}])
    route = {
        "policy": "cascade",
        "steps": [{"tier": "cheap", "accept": [{"by": "regex", "pattern": "W"}]}],
        "otherwise": "strong",
    }
    sections = {"tiers": [cheap, tier("strong")], "route": route, "baseline": "strong"}
    limited = {**sections, "sampling": {"max_tokens": 8}}
    blind = forecast_run(make_config(prompts(100, 100), **limited), size=1000)
    strong = blind.figures.tiers["strong"].requests
    assert (strong.low, strong.expected, strong.high) == (0, None, 100)
    summary = run(make_config(prompts(100, 100), **limited))
    assert within(blind, summary.bill_usd)
    elsewhere = make_config(prompts(100, 100), output={"path": str(tmp_path / "next")}, **limited)
    told = forecast_run(elsewhere, 1000, [summary.output])
    assert told.figures.tiers["strong"].requests.expected == pytest.approx(summary.escalated)
    fixed = make_config(
        prompts(100, 100),
        output={"path": str(tmp_path / "other")},
        **{**limited, "route": {"policy": "fixed", "tier": "strong"}},
    )
    other = run(fixed).output
    assert forecast_run(elsewhere, 1000, [other]).figures.tiers["strong"].requests.expected is None


def test_a_route_that_is_to_learn_may_go_either_way(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    route = {
        "policy": "certified_cascade", "cheap": "cheap", "strong": "strong",
        "plans": str(tmp_path / "plans"), "floor": {"loss_points": 1}, "sample_rows": 100,
        "quality": {"by": "strong"},
    }  # fmt: skip
    config = make_config(
        prompts(200, 200), tiers=[tier("cheap"), tier("strong")], route=route, baseline="strong"
    )
    found = forecast_run(config, size=1000)
    assert found.figures.tiers["strong"].requests.low == 100, "the sample asks both"
    assert any("not calibrated" in remark for remark in found.remarks)


def test_tokens_are_those_of_the_tier_s_own_tokenizer(make_config: MakeConfig) -> None:
    local = {
        "name": "local",
        "engine": {"kind": "vllm", "model": str(ROOT / "demo/models/small-int8")},
        "billing": {"kind": "provisioned", "usd_per_replica_hour": 3.6},
    }
    api = {
        "name": "api",
        "engine": {"kind": "api", "base_url": "http://127.0.0.1:9/v1", "model": "m"},
        "billing": {"kind": "serverless", "usd_per_mtok": PRICE},
    }
    sections = {"tiers": [local, api], "baseline": None}
    rows = [{"id": "1", "prompt": "Sort: 3 1 2"}]
    mine = forecast_run(
        make_config(rows, route={"policy": "fixed", "tier": "local"}, **sections), 9
    )
    tokens = mine.figures.tiers["local"].prompt_tokens
    assert tokens.low == tokens.high > 5
    assert math.isinf(mine.figures.cost_usd.high), "its hours are not known"
    theirs = forecast_run(
        make_config(rows, route={"policy": "fixed", "tier": "api"}, **sections), 9
    )
    guessed = theirs.figures.tiers["api"].prompt_tokens
    assert guessed.low < guessed.expected < guessed.high  # type: ignore[operator]
    assert any("guessed from bytes" in remark for remark in theirs.remarks)


def test_the_command_prints_both_ways(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(prompts(30, 20), budget_usd=1.0)
    shown = plan(config, tmp_path)
    assert shown.exit_code == 0
    for told in ("requests", "repeats", "33.3 %", "at least", "--like"):
        assert told in shown.output, shown.output
    raw = json.loads(plan(config, tmp_path, "--json").stdout)
    assert raw["figures"]["cost_usd"]["high"] is None, "nothing bounds it"
    assert raw["requests"] == 20


def test_what_plan_cannot_use_is_refused_with_a_remedy(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(prompts(3, 3))
    assert plan(config, tmp_path, "--sample", 0).exit_code == 2
    nothing = plan(config, tmp_path, "--like", tmp_path / "nowhere")
    assert nothing.exit_code == 2
    missing = plan(config, tmp_path, "--input", tmp_path / "missing.jsonl")
    assert missing.exit_code == 2
    empty = write_jsonl(tmp_path / "bad.jsonl", [{"id": "1", "prompt": ""}])
    found = plan(config, tmp_path, "--input", empty)
    assert found.exit_code == 0
    assert "errors/" in found.output
