"""The plans that `tune` stored, as a run finds those that are about its rows and models."""

from dataclasses import replace

import pyarrow as pa

from actors.hardware import engine_version
from jobs.preflight import Plan
from pipelines.config import RunConfig
from pipelines.storage import Directory, open_filesystem
from pipelines.tier import VLLM, Tier
from pipelines.tuning import Subject, TuningPlan, find_plan, load_plans, subject_of

_REFUSED_IN_SPECULATION = ("min_p", "logit_bias")


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
    if any(_may_be_asked_for(plan, field) for field in _REFUSED_IN_SPECULATION):
        return [p.without_speculation() for p in plans]
    return plans


def _may_be_asked_for(plan: Plan, field: str) -> bool:
    """A plan must not cost a row its answer."""
    body = plan.schema.field("body").type if "body" in plan.schema.names else None
    # A body of JSON text may hold anything.
    hidden = body is not None and pa.types.is_string(body)
    return hidden or field in plan.config.sampling.given() or field in plan.schema.to_string()


def _row_bytes(plan: Plan) -> float:
    fs, _ = open_filesystem(plan.config.input.path, plan.config.storage)
    paths = {block.file.path for block in plan.blocks}
    return sum(fs.size(path) for path in paths) / plan.num_rows
