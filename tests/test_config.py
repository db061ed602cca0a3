from pathlib import Path

import pytest
import yaml
from conftest import RUN_CONFIGS, tier

from pipelines.config import RunConfig
from pipelines.config_file import dump_config, load_config, parse_override
from pipelines.errors import UsageProblem

MINIMAL = {
    "input": {"path": "in.jsonl"},
    "output": {"path": "out"},
    "tiers": [tier("a"), tier("b")],
    "route": {"policy": "fixed", "tier": "a"},
}


def written(tmp_path: Path, raw: object) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    load_config(path)


def test_the_resolved_config_loads_to_the_same(tmp_path: Path) -> None:
    config = RunConfig.model_validate(MINIMAL)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ({"tier": []}, "tier", "unknown key"),
        ({"tiers": []}, "tiers", "at least 1"),
        ({"route": {"policy": "magic"}}, "route", "policy"),
        ({"route": {"policy": "fixed", "tier": "c"}}, "route.tier", "'c'"),
        ({"baseline": "c"}, "baseline", "'c'"),
        ({"tiers": [tier("a"), tier("a")]}, "tiers", "must differ"),
        ({"budget_usd": -1}, "budget_usd", "greater than 0"),
        ({"input": {}}, "input.path", "is missing"),
        ({"sampling": {"temperature": "hot"}}, "sampling.temperature", "valid number"),
        (
            {"tiers": [{**tier("a"), "billing": {"kind": "serverless"}}]},
            "tiers.0.billing",
            "exactly one",
        ),
    ],
)
def test_an_error_names_the_file_the_key_and_what_is_wrong(
    tmp_path: Path, change: dict[str, object], key: str, says: str
) -> None:
    path = written(tmp_path, {**MINIMAL, **change})
    with pytest.raises(UsageProblem) as caught:
        load_config(path)
    message = str(caught.value)
    assert str(path) in message
    assert key in message
    assert says in message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_a_usage_problem(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageProblem, match=r"run\.yaml"):
        load_config(path)


def test_a_missing_file_is_a_usage_problem(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_overrides_reach_list_items_by_name_or_place(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    settings = ["tiers.b.replicas=3", "tiers.0.placement=edge", "sampling.max_tokens=7"]
    config = load_config(path, dict(parse_override(s) for s in settings))
    assert config.tier("b").replicas == 3
    assert config.tier("a").placement == "edge"
    assert config.sampling.max_tokens == 7


@pytest.mark.parametrize("setting", ["tiers.c.replicas=3", "input.path.deep=1", "tiers.0=1"])
def test_an_override_that_leads_nowhere_is_a_usage_problem(tmp_path: Path, setting: str) -> None:
    with pytest.raises(UsageProblem, match="--set"):
        load_config(written(tmp_path, MINIMAL), dict([parse_override(setting)]))


def test_an_override_without_a_value_is_a_usage_problem() -> None:
    with pytest.raises(UsageProblem, match=r"key\.path=value"):
        parse_override("tiers.b.replicas")
