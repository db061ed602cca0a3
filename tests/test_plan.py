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

from actors.vllm_refusals import stated_context
from jobs.batch import run
from jobs.cli import main
from jobs.forecast import RunForecast, forecast_run
from jobs.preflight import plan_run
from jobs.survey import survey
from pipelines.config import RunConfig
from pipelines.config_file import dump_config
from pipelines.errors import UsageProblem
from pipelines.intake import read_block
from pipelines.storage import Directory, open_filesystem
from pipelines.tier import VLLM

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
    assert not any("max_tokens" in remark for remark in before.remarks)
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
    assert sum(times > 1 for times in found.times) == 1
    assert found.drawn.count(False) == 1
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
    strong = found.figures.tiers["strong"].requests
    assert strong.expected is None
    assert strong.low < 200 * 0.1, "what stays cheap is checked in the shadow, by lot"
    assert strong.high == pytest.approx(200 * 1.5), "the sample asks both"
    assert any("nightmill calibrate" in remark for remark in found.remarks)


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
    for told in (
        "budget left",
        "requests",
        "repeats",
        "33.3 %",
        "at least",
        "--like",
        "sampling.max_tokens",
    ):
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


def test_an_output_of_another_run_is_refused_as_by_run(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    run(make_config(prompts(30, 30)))
    for other in (make_config(prompts(10, 10)), make_config(prompts(30, 30), dedup=False)):
        with pytest.raises(UsageProblem, match="another input"):
            forecast_run(other, size=100)
    assert len(Directory(str(tmp_path / "out"), other.storage).parts("rows")) > 0


def test_a_budget_is_what_a_begun_run_has_left_of_it(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    told = {"budget_usd": 5e-4, "sampling": {"max_tokens": 9}}
    summary = run(make_config(prompts(200, 200), **told))
    assert summary.pending
    config = make_config(tmp_path / "prompts.jsonl", **told)
    found = forecast_run(config, size=1000)
    assert found.budget_left_usd == pytest.approx(5e-4 - summary.bill_usd)
    shown = plan(config, tmp_path).output
    assert "ends the run before all is answered" in " ".join(shown.split())


def test_hours_that_are_left_out_make_no_budget_enough(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    hourly = {**tier("only"), "billing": {"kind": "provisioned", "usd_per_replica_hour": 0.001}}
    sections = {"tiers": [hourly], "baseline": None, "budget_usd": 1000.0}
    done = run(make_config(prompts(60, 60), **sections)).output
    config = make_config(prompts(60, 60), output={"path": str(tmp_path / "next")}, **sections)
    found = forecast_run(config, 1000, [done])
    assert found.figures.cost_usd.expected
    assert not found.is_whole
    assert "may end the run" in " ".join(plan(config, tmp_path, "--like", done).output.split())


def test_lengths_are_cut_where_the_limit_cuts_them(tmp_path: Path, make_config: MakeConfig) -> None:
    """Of one to eight words, evenly: with a limit of two the mean is 15 / 8."""
    done = run(make_config(prompts(800, 800))).output
    config = make_config(
        prompts(800, 800), sampling={"max_tokens": 2}, output={"path": str(tmp_path / "next")}
    )
    told = forecast_run(config, 1000, [done]).figures.tiers["only"].completion_tokens
    assert told.expected == pytest.approx(100 * 15)
    assert told.low < 100 * 15 < told.high
    few = make_config(prompts(8, 8), output={"path": str(tmp_path / "few")})
    wide = forecast_run(few, 1000, [done]).figures.tiers["only"].completion_tokens
    assert wide.low < 36 * 0.75
    assert wide.high > 36 * 1.25


def test_a_run_of_other_models_tells_nothing_of_how_far_rows_climb(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    route = {
        "policy": "cascade",
        "steps": [{"tier": "cheap", "accept": [{"by": "regex", "pattern": "[02468]$"}]}],
        "otherwise": "strong",
    }

    def config(out: str, model: str) -> RunConfig:
        tiers = [tier("cheap"), tier("strong", model=model)]
        return make_config(
            prompts(100, 100), tiers=tiers, route=route, baseline="strong",
            output={"path": str(tmp_path / out)},
        )  # fmt: skip

    done = run(config("done", "one")).output
    assert forecast_run(config("a", "one"), 100, [done]).figures.tiers["strong"].requests.expected
    other = forecast_run(config("b", "another"), 100, [done]).figures
    assert other.tiers["strong"].requests.expected is None


def test_a_cache_that_is_switched_off_saves_nothing(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    path = str(tmp_path / "cache")
    run(make_config(prompts(40, 40), response_cache={"path": path}))
    for enabled, hits in ((True, 40), (False, 0)):
        cache = {"path": path, "enabled": enabled}
        out = {"path": str(tmp_path / f"next{enabled}")}
        found = forecast_run(make_config(prompts(40, 40), response_cache=cache, output=out), 100)
        assert found.figures.hits.expected == hits


def test_openai_batch_lines_go_to_the_tier_they_name(make_config: MakeConfig) -> None:
    rows = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": ("strong", "auto")[i % 2], "max_tokens": 3,
                  "messages": [{"role": "user", "content": f"w{i}"}]}}
        for i in range(20)
    ]  # fmt: skip
    config = make_config(rows, tiers=[tier("only"), tier("strong")])
    found = forecast_run(config, size=100).figures
    assert {name: told.requests.expected for name, told in found.tiers.items()} == {
        "only": 10, "strong": 10,
    }  # fmt: skip


def test_an_input_that_is_being_sorted_is_planned_from_its_files(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", prompts(300, 300))
    config = make_config(path, input={"path": str(path), "order": "whole", "block_rows": 50})
    directory = Directory(config.output.path, config.storage)
    learned = plan_run(config, date(2026, 1, 1))
    fs, _ = open_filesystem(config.input.path, config.storage)
    rows = read_block(learned.blocks[0], learned.dialect, learned.schema, learned.policy, fs)
    directory.write_table(".nightmill/ordered/part-ordered-000000.parquet", rows)
    assert forecast_run(config, size=100).requests == 300
    summary = run(config)
    assert summary.ok == 300
    assert forecast_run(config, size=100).rows == 0


def test_routing_may_look_at_the_tenant(make_config: MakeConfig) -> None:
    rows = [{**row, "customer": "ab"[i % 2]} for i, row in enumerate(prompts(40, 20))]
    config = make_config(
        rows,
        input={"path": make_config(rows).input.path, "columns": {"tenant": "customer"}},
        tiers=[tier("only"), tier("other")],
        route={
            "policy": "rules",
            "rules": [{"when": {"columns": {"customer": ["a"]}}, "tier": "other"}],
            "otherwise": "only",
        },
    )
    found = forecast_run(config, size=100).figures.tiers
    assert found["only"].requests.expected == found["other"].requests.expected == 10


def test_what_a_tier_cannot_do_is_not_paid(make_config: MakeConfig) -> None:
    local = {
        "name": "local",
        "engine": {"kind": "vllm", "model": str(ROOT / "demo/models/small-int8")},
        "billing": {"kind": "serverless", "usd_per_mtok": PRICE},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    rows = [
        {"id": "tools", "prompt": "x", "tools": [tool]},
        {"id": "long", "prompt": "word " * 9000},
        {"id": "fine", "prompt": "Sort: 3 1 2"},
    ]
    route = {"policy": "fixed", "tier": "local"}
    found = forecast_run(make_config(rows, tiers=[local], route=route, baseline="local"), 100)
    assert found.figures.refused.expected == 2
    assert found.figures.tiers["local"].requests.expected == 1


def test_a_context_that_vllm_chooses_itself_refuses_nothing() -> None:
    for chosen in (-1, "auto"):
        config = VLLM(kind="vllm", model="m/m", engine_args={"max_model_len": chosen})
        assert stated_context(config) is None


def test_speed_is_what_replicas_of_the_same_model_did(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    def config(out: str, model: str) -> RunConfig:
        tiers = [tier("only", model=model, delay_s=0.05, max_num_seqs=4)]
        return make_config(prompts(60, 60), tiers=tiers, output={"path": str(tmp_path / out)})

    same, other = (run(config(out, out)).output for out in ("same", "other"))
    told = [
        forecast_run(config("next", "same"), 100, outputs).figures.tiers["only"].hours
        for outputs in ([same], [same, other], [other])
    ]
    assert told[0] == told[1]
    assert told[0] is not None
    assert told[0].expected == pytest.approx(60 / 4 * 0.05 / 3600, rel=0.5)
    assert told[2] is None
