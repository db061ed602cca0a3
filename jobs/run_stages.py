"""The stages of one start of a run, and the actors that only they talk to."""

from collections.abc import Sequence
from typing import Any

from actors.exchange import Exchange
from jobs.hosts import EngineHost, RouterHost
from jobs.placement import beside_driver, group_of_each
from jobs.preflight import Plan
from jobs.remote import Guarded
from jobs.run_cache import RunCache
from jobs.run_state import RunIdentity
from jobs.tuning_plans import plans_for
from pipelines.blocks import Block
from pipelines.calibrated_config import Calibrated
from pipelines.chain import Stage
from pipelines.replicas import actor_options, blocks_in_flight, cpu_engines
from pipelines.route_guard import RouteGuard, Standing
from pipelines.shadow import COMMITTED_COLUMNS
from pipelines.storage import Directory
from pipelines.tier import Tier


class RunStages:
    """Args:
    meter: the run's `RunMeter` in an actor.
    cache: brings stages of its own.
    """

    def __init__(self, plan: Plan, identity: RunIdentity, meter: Any, cache: RunCache) -> None:
        self._plan, self._config = plan, plan.config
        self._identity, self._meter, self._cache = identity, meter, cache
        self._guard = _route_guard(plan)

    def build(self, blocks: Sequence[Block], similar: bool) -> list[Stage]:
        """What blocks flow through, in order.

        Args:
            similar: whether their rows may follow, or be served as, similar ones.
        """
        rows = max(block.num_rows for block in blocks)
        return [
            *(self._cache.stages_before_routing() if similar else ()),
            self._router_stage(similar),
            *(self._engine_stage(tier, rows) for tier in self._config.engine_order),
            *(self._cache.stages_after_answers() if similar else ()),
        ]

    def recall(self, directory: Directory) -> None:
        """Let the checks in the shadow go on from what earlier starts have committed."""
        if self._guard is None:
            return
        for name in directory.parts("rows"):
            self._guard.recall(directory.read_table(name, COMMITTED_COLUMNS))

    def standing(self) -> Standing | None:
        """What checks in the shadow have found; None where there are none."""
        return self._guard.standing() if self._guard else None

    def _router_stage(self, similar: bool) -> Stage:
        config, asked = self._config, self._config.route
        arguments = {
            "route": self._plan.route,
            "configured": asked,
            "plans": asked.plans if isinstance(asked, Calibrated) else None,
            "response_cache": None if similar and self._cache.is_semantic else self._cache.config,
            "storage": config.storage,
            "meter": self._meter,
            "plan": self._plan.route_plan,
            "keyed_by": self._plan.dialect.keyed_by,
            "guard": self._guard,
        }
        embedding = asked.embedding if isinstance(asked, Calibrated) else None
        gpus = embedding.num_gpus if embedding else 0
        options = {"num_cpus": 0, "num_gpus": gpus or None}
        return Stage(RouterHost, arguments, replicas=config.routers, options=options)

    def _engine_stage(self, tier: Tier, block_rows: int) -> Stage:
        plans = plans_for(self._plan, tier)
        arguments = {
            "tier": tier,
            "defaults": self._config.sampling.given(),
            "prices": self._plan.prices,
            "meter": self._meter,
            "attempt_id": self._identity.attempt_id,
            "metered": self._config.budget_usd is not None,
            "exchange": _start_exchange(tier),
            "plans": plans,
            "cpu_engines": cpu_engines(self._config.tiers),
            "route": self._plan.route,
            "configured": self._config.route,
            "guard": self._guard,
        }
        return Stage(
            EngineHost,
            arguments,
            # Its model is not loaded before its first row.
            replicas=max(tier.replica_range.min, 1),
            max_replicas=tier.replica_range.max,
            blocks_in_flight=blocks_in_flight(
                tier, block_rows, [plan.engine_args for plan in plans]
            ),
            options=actor_options(tier),
            options_of_each=group_of_each(tier),
        )


def _start_exchange(tier: Tier) -> Any | None:
    if tier.replica_range.max == 1:
        return None
    return beside_driver(Exchange, max_concurrency=1000).remote()


def _route_guard(plan: Plan) -> Guarded | None:
    """Only where some rows are promised to be as good on the cheap tier."""
    route, learned = plan.config.route, plan.route_plan
    if not isinstance(route, Calibrated) or not route.checked_share:
        return None
    if learned is None or learned.certificate.threshold is None:
        return None
    return Guarded(beside_driver(RouteGuard).remote(route.floor.terms), route, learned.difference)
