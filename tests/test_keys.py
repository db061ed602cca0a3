import json
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeConfig, tier
from hypothesis import given
from hypothesis import strategies as st

from pipelines.keys import canonical_json, policy_digest, request_key, row_id
from pipelines.requests import Request

BASE = Request([{"role": "user", "content": "hello"}], {})
POLICY = b"policy"


@pytest.mark.parametrize(
    "other",
    [
        Request([{"role": "user", "content": "hello "}], {}),
        Request([{"role": "system", "content": "hello"}], {}),
        Request([{"role": "system", "content": ""}, *BASE.messages], {}),
        Request(BASE.messages, {"temperature": 0.0}),
        Request(BASE.messages, {"max_tokens": 16}),
        Request(BASE.messages, {"stop": "x"}),
        Request(BASE.messages, {"stop": ["x"]}),
        Request(BASE.messages, {"seed": 0}),
        Request(BASE.messages, {}, tier="large"),
    ],
)
def test_whatever_can_change_the_answer_changes_the_key(other: Request) -> None:
    """Invariant 4; an omitted field differs from every value of it."""
    assert request_key(other, POLICY, {}) != request_key(BASE, POLICY, {})


def test_another_policy_is_another_key() -> None:
    assert request_key(BASE, b"other", {}) != request_key(BASE, POLICY, {})


def test_a_column_that_routing_looks_at_is_part_of_the_question() -> None:
    easy, hard = {"level": "easy"}, {"level": "hard"}
    assert request_key(BASE, POLICY, easy) != request_key(BASE, POLICY, hard)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_canonical_json_is_the_same_for_equal_values_only(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": {"temperature": 0.5}},
        {"tiers": [tier("only", model="newer")]},
        {"tiers": [tier("only"), tier("second")]},
        {"route": {"policy": "rules", "rules": [], "otherwise": "only"}},
    ],
)
def test_the_policy_digest_covers_routing_models_and_defaults(
    make_config: MakeConfig, change: dict[str, Any]
) -> None:
    assert policy_digest(make_config([], **change)) != policy_digest(make_config([]))


@pytest.mark.parametrize("change", [{"budget_usd": 1.0}, {"claim_shards": 4}])
def test_the_policy_digest_leaves_out_what_changes_no_answer(
    make_config: MakeConfig, change: dict[str, Any]
) -> None:
    assert policy_digest(make_config([], **change)) == policy_digest(make_config([]))


def test_retrained_weights_are_another_policy(make_config: MakeConfig, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    engine = {"kind": "vllm", "model": str(weights.parent)}
    config = make_config([], tiers=[{**tier("only"), "engine": engine}])
    drafted = {"speculative_config": {"model": str(weights.parent)}}
    other = {"kind": "vllm", "model": str(tmp_path), "engine_args": drafted}
    watched = make_config([], tiers=[{**tier("only"), "engine": other}])
    adapted = {"kind": "vllm", "model": "org/name", "lora_adapters": {"a": str(weights.parent)}}
    adapter = make_config([], tiers=[{**tier("only"), "engine": adapted}])
    before_adapter = policy_digest(adapter)
    before = policy_digest(config)
    before_watched = policy_digest(watched)
    weights.write_bytes(b"new")
    assert policy_digest(config) != before
    assert policy_digest(watched) != before_watched
    assert policy_digest(adapter) != before_adapter


def test_a_row_is_named_by_its_place() -> None:
    assert len({row_id("a", 0), row_id("a", 1), row_id("b", 0), row_id("a1", 0)}) == 4
    assert row_id("a", 0) == row_id("a", 0)
