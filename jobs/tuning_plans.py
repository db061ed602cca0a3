"""The plans that `tune` stored, as a run finds those that are about its rows and models."""

from dataclasses import replace

from actors.hardware import engine_version
from jobs.preflight import Plan
from pipelines.config import VLLM, RunConfig, Tier
from pipelines.storage import Directory, open_filesystem
from pipelines.tuning import Subject, TuningPlan, find_plan, load_plans, subject_of


def plans_directory(config: RunConfig) -> Directory:
    return Directory(config.tuning.path, config.storage)


def tuning_subject(plan: Plan, tier: Tier, hardware: str) -> Subject:
    """What a measurement for a tier of this run would hold for."""
    return subject_of(plan.config, tier, engine_version(), hardware, _row_bytes(plan))


def plans_for(plan: Plan, tier: Tier) -> list[TuningPlan]:
    """The stored plans that serve a tier of this run, one for each hardware."""
    if not plan.config.tuning.enabled or not isinstance(tier.engine, VLLM):
        return []
    stored = load_plans(plans_directory(plan.config))
    if not stored:
        return []
    anywhere = tuning_subject(plan, tier, hardware="")
    found = [
        find_plan(stored, replace(anywhere, hardware=hardware))
        for hardware in sorted({p.subject.hardware for p in stored})
    ]
    plans = [p for p in found if p is not None]
    return [p.without_speculation() for p in plans] if _asks_for_min_p(plan) else plans


def _asks_for_min_p(plan: Plan) -> bool:
    """vLLM refuses rows with `min_p` when it speculates: a plan must not cost a row its answer."""
    return "min_p" in plan.config.sampling.given() or "min_p" in plan.schema.to_string()


def _row_bytes(plan: Plan) -> float:
    fs, _ = open_filesystem(plan.config.input.path, plan.config.storage)
    paths = {block.file.path for block in plan.blocks}
    return sum(fs.size(path) for path in paths) / plan.num_rows
