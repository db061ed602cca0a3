"""Which tiers a row may be asked of by the time it has its answer, told before any of them is.

Pure, and beside `pipelines/cascade.py`, which decides the same while the answers come.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.accept_config import ByAgreement, ByVerifier
from pipelines.calibrated_config import Calibrated, CertifiedCascade, CertifiedGatekeeper
from pipelines.judging import grade_of_answer, grade_of_prompt
from pipelines.requests import Request
from pipelines.route_config import Cascade, Gatekeeper, Route, Step
from pipelines.route_plan import as_ladder
from pipelines.shadow import is_checked

_ANY_GRADE, _ANY_CONFIDENCE = 5, 0.5
"""Which rows a threshold lets pass is not asked here."""


@dataclass(frozen=True)
class Visit:
    """One request to a tier.

    Attributes:
        asked: what the tier reads.
        judges: whether it helps to judge an answer, instead of giving the row's.
        grades: whether it answers with a grade.
        reads_answer: whether it is asked with the answer that is judged.
        share: of the rows on this walk that may make it.
        is_certain: whether all of these do.
    """

    tier: str
    asked: Request
    judges: bool = False
    grades: bool = False
    reads_answer: bool = False
    share: float = 1.0
    is_certain: bool = True


@dataclass(frozen=True)
class Walk:
    """All visits of a row. `end`: the tier that gives the answer."""

    end: str
    visits: Sequence[Visit]


def walks(
    route: Route,
    configured: Route,
    request: Request,
    tier: str,
    step: int | None,
    row_id: str = "",
) -> list[Walk]:
    """The walks that a row may take.

    Args:
        route: as it is taken, see `route_by`.
        configured: as it was asked for.
        tier, step: where the router has put it.
        row_id: by which lots are drawn.
    """
    if step is not None and isinstance(route, Gatekeeper):
        found = _graded(route, request)
    elif step is not None and isinstance(route, Cascade):
        found = list(_climbing(route, request))
    else:
        found = [Walk(tier, [Visit(tier, request)])]
    if not isinstance(configured, Calibrated) or step is None:
        return found
    if not is_checked(configured, row_id):
        return found
    checked = Visit(configured.strong, request, judges=True)
    return [
        replace(walk, visits=[*walk.visits, checked]) if walk.end == configured.cheap else walk
        for walk in found
    ]


def walks_before_calibration(
    route: Route, request: Request, sampled: float, row_id: str = ""
) -> list[Walk]:
    """The walks that a row may take by a calibrated route that has learned nothing yet.

    Args:
        sampled: the share of requests that may be put to all tiers for that.
    """
    if isinstance(route, CertifiedGatekeeper):
        found = walks(as_ladder(route, "mean", _ANY_GRADE), route, request, route.tier, 0, row_id)
    elif isinstance(route, CertifiedCascade):
        threshold = -_ANY_CONFIDENCE if route.verifier is None else -float(_ANY_GRADE)
        found = walks(as_ladder(route, "mean", threshold), route, request, route.cheap, 0, row_id)
    else:
        assert isinstance(route, Calibrated)
        found = [
            *walks(route, route, request, route.cheap, 0, row_id),
            *walks(route, route, request, route.strong, None),
        ]
    every = {visit.tier: visit for walk in found for visit in walk.visits}
    learning = [replace(visit, share=sampled, is_certain=False) for visit in every.values()]
    return [replace(walk, visits=[*walk.visits, *learning]) for walk in found]


def _graded(route: Gatekeeper, request: Request) -> list[Walk]:
    graded = Visit(route.tier, grade_of_prompt(route.guide, request), judges=True, grades=True)
    return [Walk(end, [graded, Visit(end, request)]) for end in (route.cheap, route.strong)]


def _climbing(route: Cascade, request: Request) -> Iterator[Walk]:
    """Whoever is not accepted may have been judged, or have failed before that."""
    before: list[Visit] = []
    for step in route.steps:
        answer, judges = Visit(step.tier, request), list(_judges(step, request))
        yield Walk(step.tier, [*before, answer, *judges])
        before += [answer, *(replace(judge, is_certain=False) for judge in judges)]
    yield Walk(route.otherwise, [*before, Visit(route.otherwise, request)])


def _judges(step: Step, request: Request) -> Iterator[Visit]:
    for accept in step.accept:
        if isinstance(accept, ByAgreement):
            yield Visit(accept.tier, request, judges=True)
        elif isinstance(accept, ByVerifier):
            asked = grade_of_answer(accept.guide, request, "")
            yield Visit(accept.tier, asked, judges=True, grades=True, reads_answer=True)
