from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import MakeConfig
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import Storage
from pipelines.storage import Directory
from pipelines.tuning import (
    Subject,
    TuningPlan,
    best_tokens,
    compare,
    find_plan,
    load_plans,
    run_seconds,
    save_plan,
    schedule,
    subject_of,
    tokens_at,
)

HERE = Subject("model", "vllm 1", "a GPU", "work", row_bytes=100.0)
STEADY = [100.0, 101.0, 99.0]


@pytest.mark.parametrize(
    ("new", "wins"),
    [
        ([110.0, 111.0, 109.0], True),
        ([101.0, 102.0, 100.0], False),  # within the 2 % that nothing is measured to
        ([90.0, 140.0, 110.0], False),  # better in the middle, scattered all over
        ([150.0, 152.0, 40.0], True),  # one round far out
        ([95.0, 95.0, 95.0], False),
    ],
)
def test_a_choice_wins_by_more_than_noise(new: list[float], wins: bool) -> None:
    assert compare(new, STEADY).wins is wins


def test_no_speculation_is_chosen_unless_a_number_of_tokens_beats_it() -> None:
    assert best_tokens({0: STEADY, 1: [150.0] * 3, 2: [170.0] * 3, 3: [160.0] * 3}) == 2
    assert best_tokens({0: STEADY, 1: [101.0] * 3, 2: [60.0] * 3}) == 0


def test_a_schedule_changes_halfway_between_measured_sizes() -> None:
    assert schedule({1: 4, 4: 2, 16: 0}, largest=64) == [[1, 2, 4], [3, 8, 2], [9, 64, 0]]
    assert schedule({1: 3, 4: 3, 16: 3}, largest=16) == [[1, 16, 3]]


@given(
    st.dictionaries(st.integers(1, 300), st.integers(0, 6), min_size=1),
    st.integers(300, 1000),
)
def test_a_schedule_says_what_was_measured_and_covers_every_size(
    tokens: dict[int, int], largest: int
) -> None:
    table = schedule(tokens, largest)
    assert table[0][0] == 1
    assert table[-1][1] == largest
    assert all(a[1] + 1 == b[0] for a, b in pairwise(table))
    assert all(tokens_at(table, size) == tokens[size] for size in tokens)


def test_few_rows_weigh_the_tail_and_many_the_full_batch() -> None:
    tail_is_fast = {1: 300.0, 16: 900.0, 64: 1900.0}
    full_is_fast = {1: 100.0, 16: 800.0, 64: 2000.0}
    assert run_seconds(tail_is_fast, 40, 10.0) < run_seconds(full_is_fast, 40, 10.0)
    assert run_seconds(tail_is_fast, 100_000, 10.0) > run_seconds(full_is_fast, 100_000, 10.0)


@pytest.mark.parametrize(
    ("change", "serves"),
    [
        ({}, True),
        ({"row_bytes": 150.0}, True),
        ({"row_bytes": 250.0}, False),
        ({"model": "retrained"}, False),
        ({"engine": "vllm 2"}, False),
        ({"hardware": "another GPU"}, False),
        ({"workload": "other"}, False),
    ],
)
def test_a_plan_serves_what_it_was_measured_on(change: dict[str, object], serves: bool) -> None:
    plan = TuningPlan(HERE, {"max_num_seqs": 8}, 1.2)
    assert (find_plan([plan], replace(HERE, **change)) is plan) is serves  # type: ignore[arg-type]


def test_of_several_plans_the_one_for_the_most_similar_rows_serves() -> None:
    near, far = (TuningPlan(replace(HERE, row_bytes=b), {}, 1.0) for b in (120.0, 60.0))
    assert find_plan([far, near], HERE) is near


def test_a_stored_plan_comes_back_the_same(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path / "plans"), Storage())
    assert load_plans(directory) == []
    plan = TuningPlan(HERE, {"speculative_config": {"method": "ngram"}}, 1.3)
    save_plan(directory, plan)
    assert load_plans(directory) == [plan]


def test_the_subject_changes_with_the_files_of_the_model_and_its_draft(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    target, draft = tmp_path / "target", tmp_path / "draft"
    for folder in (target, draft):
        folder.mkdir()
        (folder / "weights").write_text("old")
    engine = {"kind": "vllm", "model": str(target), "draft_model": str(draft)}
    tier = {
        "name": "only",
        "engine": engine,
        "billing": {"kind": "provisioned", "usd_per_replica_hour": 1.0},
    }
    config = make_config([{"prompt": "x"}], tiers=[tier], baseline=None)

    def subject() -> Subject:
        return subject_of(config, config.tiers[0], "vllm 1", "a GPU", 10.0)

    first = subject()
    assert subject() == first
    for folder in (target, draft):
        before = subject()
        (folder / "weights").write_text("new")
        assert subject() != before
