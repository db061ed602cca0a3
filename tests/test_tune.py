"""The search over scripted engines, and the command with real ones on the CPU."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from conftest import ROOT, write_jsonl

from jobs.cli import main
from jobs.trial import Measured, Sample
from jobs.tuning_search import Arguments, Search
from pipelines.errors import RunFailure
from pipelines.tier import VLLM
from pipelines.tuning import Subject, TuningPlan, tokens_at

HERE = Subject("model", "vllm", "cpu", "work", 10.0)
Speed = Callable[[Arguments, Sample], float]


class ScriptedTrial:
    """An engine whose tokens a second are a function of its arguments and the sample."""

    def __init__(self, planned: Arguments, speed: Speed, side_by_side: bool) -> None:
        self.sizes = {"max_num_seqs": 64, "max_num_batched_tokens": 4096, **planned}
        self.leaves_room = side_by_side
        self._planned, self._speed = planned, speed

    def measure(self, sample: Sample) -> Measured:
        return Measured(1000 / self._speed(self._planned, sample), 1000, 0, 0)

    def close(self) -> None:
        pass


def search(
    speed: Speed, rows: int = 10_000, side_by_side: bool = False, **engine: Any
) -> TuningPlan:
    def open_trial(planned: Arguments) -> ScriptedTrial:
        return ScriptedTrial(planned, speed, side_by_side)

    configured = VLLM(kind="vllm", model="m", **engine)
    found = Search(configured, open_trial, 256, rows, lambda _: None)
    found.run()
    return found.plan(HERE)


def base(sample: Sample) -> float:
    return 100.0 * min(sample.batch_size, 64) ** 0.5


def test_nothing_is_planned_where_nothing_wins() -> None:
    plan = search(lambda _, sample: base(sample))
    assert plan.engine_args == {}
    assert plan.gain == 1.0
    assert not any(tried.taken for tried in plan.tried[1:])


def speculation_pays_when_few_run(args: Arguments, sample: Sample) -> float:
    if "speculative_config" not in args or not sample.tokens:
        return base(sample)
    return base(sample) * (1 + 0.3 * sample.tokens if sample.batch_size <= 4 else 0.7)


def test_speculation_is_planned_where_it_pays_and_left_out_where_it_costs() -> None:
    plan = search(speculation_pays_when_few_run, rows=100, draft_model="d")
    config = plan.engine_args["speculative_config"]
    table = config["num_speculative_tokens_per_batch_size"]
    assert config["method"] == "draft_model"
    assert (tokens_at(table, 1), tokens_at(table, 64)) == (6, 0)
    assert plan.gain > 1.02


def test_a_gain_in_the_tail_alone_is_nothing_to_a_million_rows() -> None:
    assert search(speculation_pays_when_few_run, rows=10**6, draft_model="d").engine_args == {}


def test_a_machine_that_slows_down_meanwhile_spoils_no_measurement_side_by_side() -> None:
    slower = itertools.count()

    def speed(args: Arguments, sample: Sample) -> float:
        return speculation_pays_when_few_run(args, sample) * 0.998 ** next(slower)

    plan = search(speed, rows=100, side_by_side=True, draft_model="d")
    table = plan.engine_args["speculative_config"]["num_speculative_tokens_per_batch_size"]
    assert (tokens_at(table, 1), tokens_at(table, 64)) == (6, 0)
    assert "max_num_seqs" not in plan.engine_args
    assert search(speed, rows=100, draft_model="d").engine_args == {}


def test_sizes_that_win_are_kept_and_built_upon() -> None:
    def speed(args: Arguments, sample: Sample) -> float:
        more = 1.2 if args.get("max_num_seqs") == 128 else 1.0
        return base(sample) * more * (1.1 if args.get("max_num_batched_tokens") == 2048 else 1.0)

    plan = search(speed)
    assert plan.engine_args == {"max_num_seqs": 128, "max_num_batched_tokens": 2048}
    assert plan.gain == pytest.approx(1.32)


def test_what_changes_answers_is_shown_and_never_taken() -> None:
    plan = search(lambda a, s: base(s) * (2.0 if a.get("kv_cache_dtype") == "fp8" else 1.0))
    (shown,) = [tried for tried in plan.tried if "kv_cache_dtype" in tried.name]
    assert shown.gain == pytest.approx(2.0)
    assert not shown.taken
    assert plan.engine_args == {}


def test_what_the_user_gave_is_not_tried() -> None:
    given = {"max_num_seqs": 8, "speculative_config": {"method": "eagle3"}}
    names = [tried.name for tried in search(lambda _, s: base(s), engine_args=given).tried]
    assert not any("max_num_seqs" in name or "ngram" in name for name in names)


def test_a_setting_that_an_engine_does_not_start_with_has_lost() -> None:
    def speed(args: Arguments, sample: Sample) -> float:
        if "max_num_batched_tokens" in args:
            raise RunFailure("out of memory")
        return base(sample)

    failed = [tried for tried in search(speed).tried if "failed" in tried.note]
    assert len(failed) == 2


def config_file(tmp_path: Path) -> Path:
    """A tier that leaves nothing to try but n-grams: two engines start."""
    prompts = [json.loads(x) for x in (ROOT / "demo/prompts.jsonl").read_text().splitlines()]
    rows = [{"id": p["id"], "messages": p["messages"]} for p in prompts[:24] if "messages" in p]
    engine_args = {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 1024,
        "enable_prefix_caching": True,
        "kv_cache_dtype": "auto",
    }
    model = str(ROOT / "demo/models/small")
    tier = {
        "name": "only",
        "engine": {"kind": "vllm", "model": model, "engine_args": engine_args},
        "billing": {"kind": "provisioned", "usd_per_replica_hour": 1.0},
    }
    config = {
        "input": {"path": str(write_jsonl(tmp_path / "prompts.jsonl", rows))},
        "output": {"path": str(tmp_path / "out")},
        "tiers": [tier],
        "route": {"policy": "fixed", "tier": "only"},
        "sampling": {"temperature": 0.0, "max_tokens": 24},
        "tuning": {"path": str(tmp_path / "plans")},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_tune_measures_once_and_a_run_uses_the_plan(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    first = CliRunner().invoke(main, ["tune", str(config), "--rows", "8", "--json"])
    assert first.exit_code == 0, first.output
    plan = json.loads(first.stdout)["only"]
    assert [tried["name"].split(",")[0] for tried in plan["tried"]] == [
        "settings as they are",
        "ngram",
    ]
    again = CliRunner().invoke(main, ["tune", str(config)])
    assert "measured before" in again.output

    # Whatever won on this machine: what the run does with a plan is to be seen.
    (stored,) = (tmp_path / "plans").glob("*.json")
    plan["engine_args"] = plan["tried"][1]["engine_args"]
    table = [[1, 4, 3]]
    plan["engine_args"]["speculative_config"]["num_speculative_tokens_per_batch_size"] = table
    plan["engine_args"]["speculative_config"]["num_speculative_tokens"] = 3
    stored.write_text(json.dumps(plan))
    ran = CliRunner().invoke(main, ["run", str(config), "--json"])
    assert ran.exit_code == 0, ran.output
    (engine,) = json.loads(ran.stdout)["engines"]
    assert engine["plan"] == stored.stem
    assert engine["draft_tokens"] > 0
    assert 0 <= engine["acceptance_rate"] <= 1 <= engine["acceptance_length"]
