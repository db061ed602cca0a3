"""What an endpoint goes by: all that is checked and read before it takes a request."""

from dataclasses import dataclass
from datetime import date

from actors.learned_policy import policy_of
from actors.online_policies import Policies
from actors.referee import Referee
from actors.router import Router
from jobs.preflight import check_config, keyed_by
from jobs.route_plans import route_plan
from jobs.shared_operations import check_operations
from pipelines.calibrated_config import Calibrated
from pipelines.cascade import build_ladder
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.intake import Dialect
from pipelines.keys import policy_digest
from pipelines.prices import PriceList
from pipelines.route_plan import RoutePlan, route_by

_TENANT = "tenant"
"""Keeps tenants apart where the configuration names no column for that."""


@dataclass(frozen=True)
class OnlinePlan:
    """An endpoint that may start."""

    config: RunConfig
    policy: bytes
    prices: PriceList
    route_plan: RoutePlan | None

    @property
    def tenant(self) -> str:
        """The column that a request's tenant stands in."""
        return self.config.input.columns.tenant or _TENANT

    @property
    def dialect(self) -> Dialect:
        """A request is a line of an OpenAI-batch file."""
        config = self.config
        return Dialect(
            columns=config.input.columns,
            format="openai_batch",
            ignore_model=False,
            tiers=tuple(tier.name for tier in config.tiers),
            defaults=config.sampling.given(),
            keyed_by=self._keyed_by,
        )

    @property
    def _keyed_by(self) -> tuple[str, ...]:
        named = keyed_by(self.config)
        if self.config.serve.tenants is None or self.tenant in named:
            return named
        return (*named, self.tenant)


def plan_endpoint(config: RunConfig, today: date) -> OnlinePlan:
    """Raises: UsageProblem naming the key and the remedy."""
    prices = check_config(config, today)
    check_operations(config.serve)
    for tier in config.tiers:
        if getattr(tier.engine, "mode", "direct") == "batch":
            raise UsageProblem(
                f"tiers.{tier.name}.engine.mode: batch: nobody waits a day for an answer online; "
                "set mode: direct, or take the tier out of this configuration"
            )
    if isinstance(config.route, Calibrated) and config.route.objective == "max_quality":
        raise UsageProblem(
            "route.objective: max_quality spends a run's budget, and an endpoint has none; "
            "take min_cost with a floor"
        )
    learned = route_plan(config)
    policy = policy_digest(config, learned.digest if learned else b"")
    return OnlinePlan(config, policy, prices, learned)


def policies(plan: OnlinePlan) -> Policies:
    """What decides about rows in one process; loads the model of a learned route."""
    config = plan.config
    route = route_by(config.route, plan.route_plan)
    ladder = build_ladder(route)
    return Policies(
        dialect=plan.dialect,
        policy=plan.policy,
        prices=plan.prices,
        router=Router(policy_of(route, config.route, plan.route_plan)),
        referees={tier.name: Referee(tier, ladder) for tier in config.tiers},
        tenant=plan.tenant,
        most_tokens=config.serve.max_tokens,
    )
