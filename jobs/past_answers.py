"""What earlier outputs tell of the next run: how long answers are, and how fast they come."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from jobs.run_state import load_replicas
from pipelines.config import RunConfig
from pipelines.route_config import tiers_named
from pipelines.settle import committed_time
from pipelines.storage import Directory

_ENOUGH_ROWS = 100_000
_COLUMNS = ["status", "source", "tier", "model", "completion_tokens"]


@dataclass(frozen=True)
class PastAnswers:
    """Of each tier, by the model that it has now.

    Attributes:
        completion_tokens: of each answer.
        tokens_per_s: that one replica generated while it had work.
        requests_per_s: that one replica answered from its first request to its last answer.
        shares: how many answers it gave where rows were routed as they will be.
    """

    completion_tokens: dict[str, np.ndarray]
    tokens_per_s: dict[str, float]
    requests_per_s: dict[str, float]
    shares: dict[str, int]


def past_answers(outputs: Sequence[Directory], config: RunConfig) -> PastAnswers:
    """Read what these outputs hold; of a large one some parts, evenly spread."""
    models = {tier.name: tier.engine.model for tier in config.tiers}
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in models}
    generated, busy_ns = Counter[str](), Counter[str]()
    requests, active_ns, shares = Counter[str](), Counter[str](), Counter[str]()
    for output in outputs:
        is_routed_alike = _is_routed_alike(output, config, models)
        for name in _some_parts(output):
            rows = _generated(output.read_table(name, _COLUMNS))
            for tier, model in models.items():
                is_own = pc.and_(pc.equal(rows["tier"], tier), pc.equal(rows["model"], model))
                own = rows.filter(is_own)
                tokens[tier].append(own["completion_tokens"].to_numpy())
                shares[tier] += own.num_rows * is_routed_alike
        committed = committed_time(output)
        for attempt, replicas in load_replicas(output).items():
            for tier in {r.tier for r in replicas if models.get(r.tier) == r.model}:
                own_replicas = [replica for replica in replicas if replica.tier == tier]
                generated[tier] += sum(replica.generated_tokens for replica in own_replicas)
                busy_ns[tier] += sum(replica.busy_ns for replica in own_replicas)
                # What a kill has lost took time too, and is not known.
                if (attempt, tier) in committed:
                    requests[tier] += committed[attempt, tier].requests
                    active_ns[tier] += sum(replica.active_ns for replica in own_replicas)
    return PastAnswers(
        completion_tokens={tier: np.concatenate([*parts, []]) for tier, parts in tokens.items()},
        tokens_per_s=_per_s(generated, busy_ns),
        requests_per_s=_per_s(requests, active_ns),
        shares={tier: count for tier, count in shares.items() if count},
    )


def _per_s(counts: Mapping[str, int], ns: Mapping[str, int]) -> dict[str, float]:
    return {tier: n * 1e9 / ns[tier] for tier, n in counts.items() if n and ns.get(tier)}


def _generated(rows: pa.Table) -> pa.Table:
    return rows.filter(
        pc.and_(pc.equal(rows["status"], "ok"), pc.equal(rows["source"], "generated"))
    )


def _is_routed_alike(output: Directory, config: RunConfig, models: Mapping[str, str]) -> bool:
    """Whether it had the same route, with the same models behind it."""
    if not output.exists("resolved.yaml"):
        return False
    was = yaml.safe_load(output.read("resolved.yaml"))
    had = {tier["name"]: tier["engine"]["model"] for tier in was["tiers"]}
    named = {tier for _, tier in tiers_named(config.route)}
    is_same = bool(was["route"] == config.route.model_dump(mode="json"))
    return is_same and all(had.get(tier) == models[tier] for tier in named)


def _some_parts(output: Directory) -> list[str]:
    parts = output.parts("rows")
    if not parts:
        return []
    most = max(_ENOUGH_ROWS // max(output.num_rows(parts[0]), 1), 1)
    return parts[:: -(-len(parts) // most)]
