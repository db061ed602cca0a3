"""The route step: which tier a row starts on, decided from the row alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from pipelines.calibrated_config import Calibrated
from pipelines.cascade import Ladder, build_ladder
from pipelines.errors import UsageProblem
from pipelines.language import languages
from pipelines.requests import Request, text_of
from pipelines.route_config import Cascade, Fixed, Gatekeeper, Match, Route


@dataclass(frozen=True)
class Decision:
    """Where a row goes and why.

    Attributes:
        score: the policy's own measure, if it has one.
        step, turn, asked: where the row stands on its ladder, if it has one, and what is asked
            of the tier in place of the row's own request.
    """

    tier: str
    reason: str
    score: float | None = None
    step: int | None = None
    turn: str | None = None
    asked: Request | None = None


@dataclass(frozen=True)
class Candidate:
    """What a policy may look at: the request, and the row's own columns."""

    request: Request
    columns: Mapping[str, Any]


class Policy(Protocol):
    """Chooses a tier for each row of a batch.

    A policy is a pure decision over features that it names in `columns`: the user's columns
    that it wants to see. It is built once per router actor and called with whole batches, so
    that one which embeds or predicts can do so at once.
    """

    @property
    def columns(self) -> Sequence[str]: ...

    def decide(self, candidates: Sequence[Candidate]) -> list[Decision]: ...


class FixedPolicy:
    """Every row to one tier."""

    columns: Sequence[str] = ()

    def __init__(self, tier: str, reason: str = "fixed") -> None:
        self._decision = Decision(tier, reason)

    def decide(self, candidates: Sequence[Candidate]) -> list[Decision]:
        return [self._decision] * len(candidates)


class LadderPolicy:
    """Every row to the first step of its ladder."""

    columns: Sequence[str] = ()

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder

    def decide(self, candidates: Sequence[Candidate]) -> list[Decision]:
        first = [self._ladder.first(candidate.request) for candidate in candidates]
        return [Decision(n.tier, n.reason, step=n.step, turn=n.turn, asked=n.asked) for n in first]


class RulesPolicy:
    """The first rule that matches decides.

    Raises:
        UsageProblem: a regular expression does not compile, or a language is not known, naming
            its key.
    """

    def __init__(self, rules: Sequence[tuple[Match, str]], otherwise: str) -> None:
        self._rules = [
            (match, _compiled(match.regex, i), Decision(tier, f"rule {i}"))
            for i, (match, tier) in enumerate(rules)
        ]
        for i, (match, _) in enumerate(rules):
            _check_languages(match.languages, i)
        self._otherwise = Decision(otherwise, "no rule matched")
        self.columns = sorted({name for match, _ in rules for name in match.columns})

    def decide(self, candidates: Sequence[Candidate]) -> list[Decision]:
        return [self._decide(_Looked(candidate)) for candidate in candidates]

    def _decide(self, looked: "_Looked") -> Decision:
        for match, regex, decision in self._rules:
            if _matches(match, regex, looked):
                return decision
        return self._otherwise


def columns_of(route: Route) -> Sequence[str]:
    """The user's columns that routing looks at: they keep equal requests apart."""
    return () if isinstance(route, Calibrated) else build_policy(route).columns


def build_policy(route: Route) -> Policy:
    """The policy that a configuration names, if it needs no calibration."""
    assert not isinstance(route, Calibrated)
    if isinstance(route, Fixed):
        return FixedPolicy(route.tier)
    if isinstance(route, Gatekeeper | Cascade):
        ladder = build_ladder(route)
        assert ladder is not None
        return LadderPolicy(ladder)
    return RulesPolicy([(rule.when, rule.tier) for rule in route.rules], route.otherwise)


def _compiled(pattern: str | None, i: int) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageProblem(f"route.rules.{i}.when.regex: {error}") from error


def _check_languages(asked: Sequence[str] | None, i: int) -> None:
    if asked and (unknown := sorted(set(asked) - languages().codes)):
        raise UsageProblem(
            f"route.rules.{i}.when.languages: {', '.join(unknown)}: cannot be told; known are "
            f"{', '.join(sorted(languages().codes))}"
        )


class _Looked:
    """A candidate, and what rules have found out about it: once, and only what they ask."""

    def __init__(self, candidate: Candidate) -> None:
        self._request, self.columns = candidate.request, candidate.columns

    @cached_property
    def length(self) -> int:
        return sum(len(text_of(m.get("content"))) for m in self._request.messages)

    @cached_property
    def text(self) -> str:
        return self._request.last_user_text

    @cached_property
    def language(self) -> str | None:
        return languages().of(self.text)


def _matches(match: Match, regex: re.Pattern[str] | None, looked: _Looked) -> bool:
    """The language last: it takes longest to tell."""
    if match.max_prompt_chars is not None and looked.length > match.max_prompt_chars:
        return False
    if match.min_prompt_chars is not None and looked.length < match.min_prompt_chars:
        return False
    if regex is not None and not regex.search(looked.text):
        return False
    columns = match.columns.items()
    if not all(str(looked.columns.get(name)) in accepted for name, accepted in columns):
        return False
    return match.languages is None or looked.language in match.languages
