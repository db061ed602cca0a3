from typing import Any

import pytest

from pipelines.errors import UsageProblem
from pipelines.requests import Request
from pipelines.route_config import Fixed, Match, Rule, Rules
from pipelines.routing import Candidate, build_policy


def candidate(text: str, system: str = "", **columns: Any) -> Candidate:
    turns = [{"role": "system", "content": system}] if system else []
    return Candidate(Request([*turns, {"role": "user", "content": text}], {}), columns)


def rules(*pairs: tuple[dict[str, Any], str]) -> Any:
    listed = [Rule(when=Match(**when), tier=tier) for when, tier in pairs]
    return build_policy(Rules(policy="rules", rules=listed, otherwise="strong"))


def test_fixed_sends_every_row_to_its_tier() -> None:
    decisions = build_policy(Fixed(policy="fixed", tier="a")).decide([candidate("x")] * 2)
    assert [d.tier for d in decisions] == ["a", "a"]


@pytest.mark.parametrize(
    ("when", "row", "matches"),
    [
        ({"max_prompt_chars": 5}, candidate("12345"), True),
        ({"max_prompt_chars": 5}, candidate("1234", system="56"), False),
        ({"min_prompt_chars": 5}, candidate("1234"), False),
        ({"min_prompt_chars": 5}, candidate("12345"), True),
        ({"regex": r"^sum"}, candidate("sum of"), True),
        ({"regex": r"^sum"}, candidate("the sum", system="sum"), False),
        ({"columns": {"task": ["a", "b"]}}, candidate("x", task="b"), True),
        ({"columns": {"task": ["a"]}}, candidate("x", task=None), False),
        ({"columns": {"level": ["3"]}}, candidate("x", level=3), True),
        ({"columns": {"task": ["a"]}, "regex": "y"}, candidate("x", task="a"), False),
    ],
)
def test_a_rule_matches_when_all_its_conditions_hold(
    when: dict[str, Any], row: Candidate, matches: bool
) -> None:
    (decision,) = rules((when, "cheap")).decide([row])
    assert decision.tier == ("cheap" if matches else "strong")


def test_the_first_matching_rule_decides_and_is_named() -> None:
    policy = rules(({"regex": "a"}, "one"), ({"regex": "b"}, "two"))
    decisions = policy.decide([candidate("ab"), candidate("b"), candidate("c")])
    assert [(d.tier, d.reason) for d in decisions] == [
        ("one", "rule 0"),
        ("two", "rule 1"),
        ("strong", "no rule matched"),
    ]


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(UsageProblem, match=r"route\.rules\.0\.when\.regex"):
        rules(({"regex": "("}, "cheap"))
