import subprocess
import sys
from typing import Any

import pytest
from conftest import MakeConfig

from pipelines.errors import UsageProblem
from pipelines.keys import policy_digest
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
        ({"languages": ["de", "fr"]}, candidate("Wie koche ich Reis?"), True),
        ({"languages": ["de", "fr"]}, candidate("How do I cook rice?"), False),
        ({"languages": ["de"]}, candidate("How do I cook?", system="Antworte immer kurz"), False),
        ({"languages": ["ja"]}, candidate("ご飯の炊き方を教えてください"), True),
        # Nothing tells the language of these, so they are in none.
        ({"languages": ["en", "sr"]}, candidate("42 + 17"), False),
        ({"languages": ["en", "sr"]}, candidate("ok"), False),
        ({"languages": ["de"], "regex": "Reis"}, candidate("Wie koche ich Reis?"), True),
        ({"languages": ["de"], "regex": "Brot"}, candidate("Wie koche ich Reis?"), False),
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


def test_an_unknown_language_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        UsageProblem, match=r"route\.rules\.0\.when\.languages: german.*known are .*de"
    ):
        rules(({"languages": ["german"]}, "cheap"))


def test_rules_without_a_language_load_no_detector() -> None:
    code = (
        "import sys, pipelines.routing as r, pipelines.route_config as c\n"
        "rules = [{'when': {'regex': 'a'}, 'tier': 'x'}]\n"
        "raw = {'policy': 'rules', 'rules': rules, 'otherwise': 'y'}\n"
        "r.build_policy(c.Rules.model_validate(raw))\n"
        "sys.exit('py3langid' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_another_detector_is_another_policy(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keyed(**when: Any) -> bytes:
        rule = {"when": when, "tier": "only"}
        route = {"policy": "rules", "rules": [rule], "otherwise": "only"}
        return policy_digest(make_config([], route=route))

    spoken, written = keyed(languages=["de"]), keyed(regex="x")
    monkeypatch.setattr("pipelines.keys.languages_revision", lambda: "newer")
    assert keyed(languages=["de"]) != spoken
    assert keyed(regex="x") == written
