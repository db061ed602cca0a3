from typing import Any

import pytest
from conftest import MakeConfig, tier
from pydantic import ValidationError

from pipelines.config import RunConfig


def cascade(*tiers: str, otherwise: str, **accept: Any) -> dict[str, Any]:
    check = accept or {"by": "regex", "pattern": "."}
    steps = [{"tier": name, "accept": [check]} for name in tiers]
    return {"policy": "cascade", "steps": steps, "otherwise": otherwise}


def order(config: RunConfig) -> list[str]:
    return [tier.name for tier in config.engine_order]


def test_tiers_stand_as_listed_where_nothing_else_is_said(make_config: MakeConfig) -> None:
    tiers = [tier("b"), tier("a")]
    assert order(make_config([], tiers=tiers, route=FIXED, baseline="a")) == ["b", "a"]


def test_who_may_get_a_row_from_another_comes_after_it(make_config: MakeConfig) -> None:
    tiers = [tier("strong"), {**tier("mid"), "fallback": "spare"}, tier("spare"), tier("cheap")]
    route = cascade("cheap", "mid", otherwise="strong")
    assert order(make_config([], tiers=tiers, route=route, baseline="strong")) == [
        "cheap", "mid", "strong", "spare",
    ]  # fmt: skip


def test_a_helper_stands_between(make_config: MakeConfig) -> None:
    tiers = [tier("strong"), tier("judge"), tier("cheap")]
    route = cascade("cheap", otherwise="strong", by="verifier", tier="judge")
    assert order(make_config([], tiers=tiers, route=route, baseline="strong")) == [
        "cheap", "judge", "strong",
    ]  # fmt: skip


def test_a_tier_may_hand_rows_to_itself(make_config: MakeConfig) -> None:
    tiers = [tier("strong"), tier("small")]
    route = {"policy": "gatekeeper", "tier": "small", "cheap": "small", "strong": "strong"}
    assert order(make_config([], tiers=tiers, route=route, baseline="strong")) == [
        "small", "strong",
    ]  # fmt: skip


def test_a_circle_is_refused_with_its_names(make_config: MakeConfig) -> None:
    tiers = [{**tier("a"), "fallback": "b"}, {**tier("b"), "fallback": "a"}]
    with pytest.raises(ValidationError, match="a and b hand rows to each other"):
        make_config([], tiers=tiers, route=FIXED, baseline="a")


def test_a_tier_that_is_none_is_named_with_its_key(make_config: MakeConfig) -> None:
    route = cascade("a", otherwise="a", by="agreement", tier="ghost")
    with pytest.raises(ValidationError, match=r"route\.steps\.0\.accept\.0\.tier: no tier 'ghost'"):
        make_config([], tiers=[tier("a")], route=route, baseline="a")
    with pytest.raises(ValidationError, match=r"tiers\.a\.fallback: no tier 'ghost'"):
        make_config([], tiers=[{**tier("a"), "fallback": "ghost"}], route=FIXED, baseline="a")


FIXED = {"policy": "fixed", "tier": "a"}
