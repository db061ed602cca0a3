"""What earlier outputs tell of the next run: how long answers are, and how fast they come."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from jobs.summary import load_summary
from pipelines.config import RunConfig
from pipelines.storage import Directory

_ENOUGH_ROWS = 100_000
_COLUMNS = ["status", "source", "tier", "model", "completion_tokens", "e2e_s"]


@dataclass(frozen=True)
class PastAnswers:
    """Of each tier, by the model that it has now.

    Attributes:
        completion_tokens: of each answer.
        e2e_s: the mean time from asking to the end of an answer.
        tokens_per_s: that one replica generated while it had work.
        shares: how many answers it gave where rows were routed as they will be.
    """

    completion_tokens: dict[str, np.ndarray]
    e2e_s: dict[str, float]
    tokens_per_s: dict[str, float]
    shares: dict[str, int]


def past_answers(outputs: Sequence[Directory], config: RunConfig) -> PastAnswers:
    """Read what these outputs hold; of a large one some parts, evenly spread."""
    models = {tier.name: tier.engine.model for tier in config.tiers}
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in models}
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in models}
    generated, busy, shares = Counter[str](), Counter[str](), Counter[str]()
    for output in outputs:
        is_routed_alike = _route(output) == config.route.model_dump(mode="json")
        for name in _some_parts(output):
            rows = _generated(output.read_table(name, _COLUMNS))
            for tier, model in models.items():
                own = rows.filter(
                    pc.and_(pc.equal(rows["tier"], tier), pc.equal(rows["model"], model))
                )
                tokens[tier].append(own["completion_tokens"].to_numpy())
                seconds[tier].append(own["e2e_s"].to_numpy())
                shares[tier] += own.num_rows * is_routed_alike
        summary = load_summary(output)
        for engine in summary.engines if summary else ():
            if models.get(tier := engine["tier"]) == engine["model"]:
                generated[tier] += engine["generated_tokens"]
                busy[tier] += engine["busy_s"]
    lengths = {tier: np.concatenate([*parts, []]) for tier, parts in tokens.items()}
    took = {tier: np.concatenate([*parts, []]) for tier, parts in seconds.items()}
    return PastAnswers(
        completion_tokens=lengths,
        e2e_s={tier: float(np.nanmean(every)) for tier, every in took.items() if len(every)},
        tokens_per_s={t: generated[t] / busy[t] for t in generated if generated[t] and busy[t]},
        shares={tier: count for tier, count in shares.items() if count},
    )


def _generated(rows: pa.Table) -> pa.Table:
    return rows.filter(
        pc.and_(pc.equal(rows["status"], "ok"), pc.equal(rows["source"], "generated"))
    )


def _route(output: Directory) -> Any:
    """As the configuration beside the results has it."""
    if not output.exists("resolved.yaml"):
        return None
    return yaml.safe_load(output.read("resolved.yaml"))["route"]


def _some_parts(output: Directory) -> list[str]:
    parts = output.parts("rows")
    if not parts:
        return []
    most = max(_ENOUGH_ROWS // max(output.num_rows(parts[0]), 1), 1)
    return parts[:: -(-len(parts) // most)]
