"""The ladder of a row that several tiers may work on: what comes after each of them.

Pure: it sees what a tier made of its turn and says what is next. A turn is an `answer`, a
`grade` of the prompt, or `accept N`, where another tier helps to judge a parked answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from pipelines.accept_config import Accept, ByAgreement, ByConfidence, ByVerifier
from pipelines.agreement import AGREEMENT
from pipelines.checkers import Checker, build_checker
from pipelines.confidence import confidence
from pipelines.judging import grade_in, grade_of_answer, grade_of_prompt
from pipelines.requests import Request
from pipelines.route_config import Cascade, Gatekeeper, Route, Step

Audit = Literal["worse", "as_good", "better", "differs"]
"""Of a cheap answer beside the strong one. It differs where nothing says which of them is right."""
ANSWER, GRADE = "answer", "grade"
CUT_SHORT = "length"
"""The `finish_reason` of an answer that is not complete."""


@dataclass(frozen=True)
class Given:
    """What came of a tier's turn.

    Attributes:
        step: of the ladder.
        request: the row's own, whatever the tier was asked.
        response: None if the tier had none to give.
        complete: whether the answer was not cut short.
        parked: the answer that this turn was to judge.
        label: the right answer, where the ladder named a column of them.
        tier: that gave the answer, or the parked one if there is one.
    """

    step: int
    turn: str
    request: Request
    response: str | None
    complete: bool = True
    token_logprobs: str | None = None
    parked: str | None = None
    row_id: str = ""
    label: str | None = None
    tier: str = ""


@dataclass(frozen=True)
class Next:
    """Another tier's turn.

    Attributes:
        asked: what to ask it in place of the row's own request.
        parks: keep the answer that is there until this turn is over.
        escalates: the answer that is there was not taken.
    """

    tier: str
    step: int
    turn: str = ANSWER
    asked: Request | None = None
    parks: bool = False
    escalates: bool = False
    reason: str = ""
    score: float | None = None


@dataclass(frozen=True)
class Done:
    """The row has its answer: the one that is there, or the one that was parked.

    Attributes:
        audit: how the answer that was parked compares with the one that is there.
    """

    reason: str
    score: float | None = None
    takes_parked: bool = False
    audit: Audit | None = None


class Ladder(Protocol):
    """What follows each tier's turn. `label` names a column of right answers, if it wants one."""

    label: str | None

    def first(self, request: Request) -> Next: ...

    def after(self, given: Given) -> Next | Done: ...

    def is_last(self, step: int, turn: str) -> bool:
        """Whether what comes of this turn is the row's answer, whatever it is."""
        ...

    def step_of(self, tier: str, step: int) -> int:
        """Where a row is that this tier answers in place of the step's own."""
        ...


def build_ladder(route: Route) -> Ladder | None:
    """The ladder that a route describes; None where one tier's answer is the end of it.

    Raises:
        UsageProblem: a check in it cannot be made.
    """
    if isinstance(route, Gatekeeper):
        return GatekeeperLadder(route)
    return CascadeLadder(route) if isinstance(route, Cascade) else None


class GatekeeperLadder:
    """A grade first; it decides which tier answers."""

    label: str | None = None

    def __init__(self, config: Gatekeeper) -> None:
        self._config = config

    def first(self, request: Request) -> Next:
        asked = grade_of_prompt(self._config.guide, request)
        return Next(self._config.tier, 0, GRADE, asked, reason="to be graded")

    def is_last(self, step: int, turn: str) -> bool:
        return turn == ANSWER

    def step_of(self, tier: str, step: int) -> int:
        return step

    def after(self, given: Given) -> Next | Done:
        if given.turn == ANSWER:
            return Done("")
        grade = grade_in(given.response)
        if grade is None:
            return Next(self._config.strong, 1, reason="no grade")
        is_easy = grade <= self._config.threshold
        tier = self._config.cheap if is_easy else self._config.strong
        return Next(tier, 1, reason=f"grade {grade}", score=grade)


@dataclass(frozen=True)
class _Verdict:
    """On a condition: whether it holds; `waits` is the turn that will tell."""

    holds: bool
    says: str = ""
    score: float | None = None
    waits: Next | None = None


class CascadeLadder:
    """Answer, check, accept or escalate, tier after tier."""

    label: str | None = None

    def __init__(self, config: Cascade) -> None:
        self._steps: Sequence[Step] = config.steps
        self._otherwise = config.otherwise
        self._checkers: dict[tuple[int, int], Checker] = {
            (i, j): build_checker(accept, f"route.steps.{i}.accept.{j}")
            for i, step in enumerate(config.steps)
            for j, accept in enumerate(step.accept)
            if not isinstance(accept, ByConfidence | ByAgreement | ByVerifier)
        }

    def first(self, request: Request) -> Next:
        return replace(self._answering(0, request), reason="cascade")

    def is_last(self, step: int, turn: str) -> bool:
        return step == len(self._steps) and turn == ANSWER

    def step_of(self, tier: str, step: int) -> int:
        """A tier further up is not asked again, and its answer not held for a lesser one's."""
        tiers = [*(one.tier for one in self._steps), self._otherwise]
        return next((i for i in range(step, len(tiers)) if tiers[i] == tier), step)

    def after(self, given: Given) -> Next | Done:
        if given.step == len(self._steps):
            return Done("")
        if given.turn != ANSWER:
            return self._after_check(given)
        if given.response is None:
            return self._escalated(given, "gave no answer")
        if not given.complete:
            return self._escalated(given, "was cut short")
        return self._judged(given, 0)

    def _after_check(self, given: Given) -> Next | Done:
        at = int(given.turn.removeprefix("accept "))
        verdict = self._heard(self._steps[given.step].accept[at], given)
        if not verdict.holds:
            return self._escalated(given, verdict.says, verdict.score)
        # The answer under judgement is the parked one, for all conditions that follow too.
        judged = replace(given, response=given.parked, turn=ANSWER)
        return self._judged(judged, at + 1, verdict)

    def _judged(self, given: Given, start: int, last: _Verdict | None = None) -> Next | Done:
        """Try the conditions from `start` on; the answer is the row's if all hold."""
        for at in range(start, len(self._steps[given.step].accept)):
            last = self._tried(given, at)
            if last.waits is not None:
                return last.waits
            if not last.holds:
                return self._escalated(given, last.says, last.score)
        assert last is not None
        reason = f"{self._steps[given.step].tier} accepted: {last.says}"
        return Done(reason, last.score, takes_parked=given.parked is not None)

    def _tried(self, given: Given, at: int) -> _Verdict:
        accept = self._steps[given.step].accept[at]
        response = given.response or ""
        match accept:
            case ByConfidence():
                found = confidence(given.token_logprobs, accept.measure)
                says = "no probabilities" if found is None else f"confidence {found:.3f}"
                return _Verdict(found is not None and found >= accept.at_least, says, found)
            case ByAgreement():
                waits = Next(accept.tier, given.step, f"accept {at}", parks=True)
            case ByVerifier():
                asked = grade_of_answer(accept.guide, given.request, response)
                waits = Next(accept.tier, given.step, f"accept {at}", asked, parks=True)
            case _:
                holds = self._checkers[given.step, at](given.request.last_user_text, response)
                return _Verdict(holds, f"{accept.by} {'holds' if holds else 'fails'}")
        return _Verdict(False, waits=waits)

    def _heard(self, accept: Accept, given: Given) -> _Verdict:
        """What the tier that was asked to help says of the parked answer."""
        assert given.parked is not None
        if isinstance(accept, ByAgreement):
            agree: Callable[[str, str], bool] = AGREEMENT[accept.compare]
            if given.response is None or not given.complete:
                return _Verdict(False, f"{accept.tier} gave no full answer")
            holds = agree(given.parked, given.response)
            return _Verdict(holds, f"{accept.tier} {'agrees' if holds else 'differs'}")
        assert isinstance(accept, ByVerifier)
        grade = grade_in(given.response)
        if grade is None:
            return _Verdict(False, f"{accept.tier} gave no grade")
        return _Verdict(grade >= accept.at_least, f"{accept.tier} graded {grade}", grade)

    def _escalated(self, given: Given, why: str, score: float | None = None) -> Next:
        found = f"{self._steps[given.step].tier} not accepted: {why}"
        following = self._answering(given.step + 1, given.request)
        return replace(following, escalates=True, reason=found, score=score)

    def _answering(self, step: int, request: Request) -> Next:
        if step == len(self._steps):
            return Next(self._otherwise, step)
        wants = any(isinstance(a, ByConfidence) for a in self._steps[step].accept)
        given = request.sampling.get("logprobs")
        asks = wants and given in (None, False)
        asked = replace(request, sampling={**request.sampling, "logprobs": True}) if asks else None
        return Next(self._steps[step].tier, step, asked=asked)
