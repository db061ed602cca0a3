from datetime import date
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeConfig

from jobs.preflight import Plan, plan_run
from jobs.tuning_plans import plans_directory, plans_for, tuning_subject
from pipelines.tuning import TuningPlan, save_plan

PLANNED = {"max_num_seqs": 8, "speculative_config": {"method": "ngram"}}


def planned_run(
    tmp_path: Path, make_config: MakeConfig, rows: list[dict[str, Any]], **sections: Any
) -> Plan:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tier = {
        "name": "only",
        "engine": {"kind": "vllm", "model": str(folder)},
        "billing": {"kind": "provisioned", "usd_per_replica_hour": 1.0},
    }
    config = make_config(
        rows,
        tiers=[tier],
        baseline=None,
        tuning={"path": str(tmp_path / "plans"), **sections.pop("tuning", {})},
        **sections,
    )
    directory = plans_directory(config)
    plan = plan_run(config, date(2026, 11, 24))
    for hardware in ("a GPU", "another"):
        subject = tuning_subject(plan, config.tiers[0], hardware)
        save_plan(directory, TuningPlan(subject, PLANNED, 1.2))
    return plan


def found(plan: Plan) -> list[dict[str, Any]]:
    return [p.engine_args for p in plans_for(plan, plan.config.tiers[0])]


def test_a_run_finds_the_plan_for_each_hardware(tmp_path: Path, make_config: MakeConfig) -> None:
    assert found(planned_run(tmp_path, make_config, [{"prompt": "x"}])) == [PLANNED, PLANNED]


def test_a_run_that_is_told_not_to_finds_none(tmp_path: Path, make_config: MakeConfig) -> None:
    assert (
        found(planned_run(tmp_path, make_config, [{"prompt": "x"}], tuning={"enabled": False}))
        == []
    )


@pytest.mark.parametrize(
    ("rows", "sections"),
    [
        ([{"prompt": "x", "min_p": 0.1}], {}),
        ([{"prompt": "x"}], {"sampling": {"min_p": 0.1}}),
        ([{"prompt": "x", "logit_bias": {"5": 1}}], {}),
    ],
)
def test_rows_that_speculation_would_cost_their_answer_run_without(
    tmp_path: Path, make_config: MakeConfig, rows: list[dict[str, Any]], sections: dict[str, Any]
) -> None:
    args = found(planned_run(tmp_path, make_config, rows, **sections))
    assert args == [{"max_num_seqs": 8}] * 2
