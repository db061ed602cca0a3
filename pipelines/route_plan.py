"""What `calibrate` found out about a route, as runs use it."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.accept_config import Accept, ByConfidence, ByVerifier
from pipelines.calibrated_config import (
    Calibrated,
    CertifiedCascade,
    CertifiedGatekeeper,
)
from pipelines.certify import Certificate
from pipelines.config import RunConfig
from pipelines.embedders import embedder_revision
from pipelines.keys import canonical_json, digest, request_key, tier_identity
from pipelines.requests import Request
from pipelines.route_config import Cascade, Fixed, Gatekeeper, Route, Step, tiers_named
from pipelines.storage import Directory
from pipelines.within_budget import Frontier, Option

Arrays = Mapping[str, np.ndarray]
_FORMAT = 3
"""Of stored plans: one of another format is calibrated anew."""
_OPERATIONAL = {"plans", "calibrate", "shadow_share"}
"""What changes no plan."""
_UNKEYED = b""
"""Known answers hold for a tier of the plan, whatever else the policy says."""


@dataclass(frozen=True)
class RoutePlan:
    """A calibrated route.

    Attributes:
        key: names the route, the models and the sampling that it holds for.
        model: that scores, or the measure of confidence.
        arrays: from which the scorer and the guard are made again; empty where nothing was
            certified.
        frontier: what a budget can buy; None where there is a floor.
        difference: what the strong answer gained, on average, where the two differed.
    """

    key: str
    model: str
    certificate: Certificate
    arrays: Arrays
    frontier: Frontier | None = None
    difference: float = 1.0

    @property
    def digest(self) -> bytes:
        """Changes with whatever changes a row's tier."""
        return digest(_plan_json(self) + _packed(self.arrays))


def route_by(route: Route, plan: RoutePlan | None) -> Route:
    """The route as a run takes it: one whose threshold was certified, where grades and confidence
    need no model here to tell them."""
    if plan is None or not isinstance(route, CertifiedCascade | CertifiedGatekeeper):
        return route
    threshold = plan.certificate.threshold
    if threshold is None:
        return Fixed(policy="fixed", tier=route.strong)
    return as_ladder(route, plan.model, threshold)


def as_ladder(
    route: CertifiedCascade | CertifiedGatekeeper, measure: str, threshold: float
) -> Route:
    """What such a route does with a threshold: a grade, or what is asked of an answer, negated."""
    if isinstance(route, CertifiedGatekeeper):
        told = {name: getattr(route, name) for name in ("tier", "guide", "cheap", "strong")}
        return Gatekeeper(policy="gatekeeper", threshold=round(threshold), **told)
    step = Step(tier=route.cheap, accept=[_accepting(route, measure, -threshold)])
    return Cascade(policy="cascade", steps=[step], otherwise=route.strong)


def _accepting(route: CertifiedCascade, measure: str, at_least: float) -> Accept:
    if route.verifier is not None:
        asked = route.verifier
        told = {"tier": asked.tier, "guide": asked.guide}
        return ByVerifier(by="verifier", at_least=round(at_least), **told)
    said = {"by": "confidence", "measure": measure, "at_least": at_least}
    return ByConfidence.model_validate(said)


def plan_key(config: RunConfig, route: Calibrated) -> str:
    """The name of the plan that a run of this configuration needs.

    Not of its input: a nightly run brings another every night. Whether its rows are like those
    of the sample is for the guard to see.
    """
    tiers = {name: tier_identity(config.tier(name)) for _, name in tiers_named(route)}
    said = route.model_dump(mode="json", exclude=_OPERATIONAL)
    models = [getattr(part, "embedding", None) for part in (route, route.quality)]
    revisions = [embedder_revision(model) for model in models if model is not None]
    return digest(canonical_json([_FORMAT, said, tiers, config.sampling.given(), revisions])).hex()


def save_plan(directory: Directory, plan: RoutePlan, known: pa.Table) -> None:
    """The plan itself goes last: it is there only with all that it needs."""
    directory.write_table(f"{plan.key}.known.parquet", known)
    directory.write(f"{plan.key}.npz", _packed(plan.arrays))
    directory.write(f"{plan.key}.json", _plan_json(plan))


def is_stored(directory: Directory, key: str) -> bool:
    return directory.exists(f"{key}.json")


def load_plan(directory: Directory, key: str) -> RoutePlan | None:
    if not is_stored(directory, key):
        return None
    told = json.loads(directory.read(f"{key}.json"))
    with np.load(io.BytesIO(directory.read(f"{key}.npz")), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    frontier = told["frontier"] and Frontier(
        **{**told["frontier"], "options": [Option(**o) for o in told["frontier"]["options"]]}
    )
    certificate = Certificate(**told["certificate"])
    return RoutePlan(key, told["model"], certificate, found, frontier, told["difference"])


def known_answers(directory: Directory, key: str) -> pa.Table:
    """The strong tier's answers to the sample, by `known_key`."""
    return directory.read_table(f"{key}.known.parquet")


def known_key(request: Request, keyed_by: Mapping[str, Any]) -> str:
    """Names a request whose answer is known, apart from any run's policy.

    Args:
        keyed_by: the row's values that keep equal requests apart, as its tenant.
    """
    return request_key(request, _UNKEYED, keyed_by).hex()


def _plan_json(plan: RoutePlan) -> bytes:
    frontier = plan.frontier and asdict(plan.frontier)
    certificate = asdict(plan.certificate)
    told = {"model": plan.model, "certificate": certificate, "frontier": frontier}
    return canonical_json({**told, "difference": plan.difference})


def _packed(arrays: Arrays) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **{name: arrays[name] for name in sorted(arrays)})  # type: ignore[arg-type]
    return sink.getvalue()
