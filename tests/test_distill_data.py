import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import Storage
from pipelines.distill_config import Data, Eval
from pipelines.distill_data import (
    Example,
    Sample,
    batches_from,
    encode,
    prompt_key,
    read_data,
    similar_lengths,
    split,
    step_batches,
)
from pipelines.errors import UsageProblem
from pipelines.requests import Request


def read(path: Path, **columns: Any) -> tuple[list[Sample], Counter[str]]:
    source = Data.model_validate({"path": str(path), "columns": columns})
    samples, skipped, _ = read_data([source], Storage())
    return samples, skipped


def request(text: str, system: str | None = None) -> Request:
    turns = [{"role": "system", "content": system}] if system else []
    return Request([*turns, {"role": "user", "content": text}], {})


def example(key: str, length: int = 4) -> Example:
    return Example(tuple(range(length)), length - 1, key.encode(), None)


def characters(text: str, complete: bool = True) -> Sequence[int]:
    return [*map(ord, text), *([0] if complete else [])]


def test_a_prompt_file_brings_prompts_answers_and_labels(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "response": "A", "label": "A"},
        {"messages": [{"role": "user", "content": "b"}], "max_tokens": 3},
        {"prompt": ""},
    ]
    samples, skipped = read(write_jsonl(tmp_path / "p.jsonl", rows))
    assert [(s.request.last_user_text, s.answer, s.label) for s in samples] == [
        ("a", "A", "A"),
        ("b", None, None),
    ]
    assert skipped == {"invalid_row": 1}


def test_an_output_of_a_run_brings_the_answers_already_paid_for(tmp_path: Path) -> None:
    rows = tmp_path / "out" / "rows"
    rows.mkdir(parents=True)
    (tmp_path / "out" / "resolved.yaml").write_text("")
    table = {
        "prompt": ["a", "b", "c", "d"],
        "status": ["ok", "error", "ok", "ok"],
        "response": ["A", None, "C", "D"],
        "finish_reason": ["stop", None, "length", "stop"],
        "tool_calls": [None, None, None, "[{}]"],
    }
    pq.write_table(pa.table(table), rows / "part-0.parquet")
    samples, skipped = read(tmp_path / "out")
    assert [(s.answer, s.complete) for s in samples] == [("A", True), ("C", False)]
    assert skipped == {"unanswered": 1, "no plain answer": 1}


def test_openai_batch_lines_are_read(tmp_path: Path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 0.5}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    samples, _ = read(write_jsonl(tmp_path / "b.jsonl", [line]))
    assert samples[0].request == Request(body["messages"], {})


def test_the_same_row_twice_is_learned_once(tmp_path: Path) -> None:
    samples, skipped = read(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "a"}]))
    assert len(samples) == 1
    assert skipped == {"repeated": 1}


@pytest.mark.parametrize("rows", [[], [{"prompt": ""}, {"other": 1}]])
def test_data_without_a_usable_row_is_a_usage_problem(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(UsageProblem, match=r"data.*(nothing to learn|no rows)"):
        read(write_jsonl(tmp_path / "p.jsonl", rows))


def test_a_missing_file_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"data\.0\.path"):
        read(tmp_path / "none.jsonl")


def test_tokens_are_the_prompts_then_the_answers() -> None:
    samples = [
        Sample(request("ab"), "c", True, "c"),
        Sample(request("ab"), "c", False, None),
        Sample(request("ab"), None, True, None),
    ]
    examples, _ = encode(
        samples, lambda r: characters(r.last_user_text, False), characters, 9, True
    )
    assert [(e.ids, e.prefix) for e in examples] == [
        ((97, 98, 99, 0), 2),
        ((97, 98, 99), 2),
        ((97, 98), 2),
    ]


def test_rows_that_do_not_fit_the_context_are_left_out_and_counted() -> None:
    samples = [
        Sample(request("a" * 4), "b", True, None),
        Sample(request("a" * 4), "bb", True, None),
        Sample(request("a" * 6), None, True, None),
        Sample(request("a" * 5), None, True, None),
    ]
    examples, skipped = encode(
        samples, lambda r: characters(r.last_user_text, False), characters, 6, True
    )
    assert [len(e.ids) for e in examples] == [6, 5]
    assert skipped == {"longer than the context": 2}


def test_a_prompt_that_the_template_refuses_is_counted() -> None:
    samples = [Sample(request("a"), None, True, None)]
    assert encode(samples, lambda _: None, characters, 9, True) == ([], {"template": 1})


@pytest.mark.parametrize(
    "other",
    [request("same  question\n"), request("same question", system="Be short.")],
)
def test_spacing_and_system_prompts_make_no_other_question(other: Request) -> None:
    assert prompt_key(other) == prompt_key(request("same question"))


@given(
    keys=st.lists(st.sampled_from("abcdefghijkl"), min_size=5).filter(lambda k: len(set(k)) > 4),
    rows=st.integers(2, 4),
    seed=st.integers(0, 9),
)
def test_no_prompt_is_in_two_parts_and_none_is_lost(keys: list[str], rows: int, seed: int) -> None:
    parts = split([example(key) for key in keys], Eval(rows=rows, seed=seed))
    found = {part: {e.key for e in examples} for part, examples in parts.items()}
    assert sum(map(len, found.values())) == len(set(keys))
    assert sum(map(len, parts.values())) == len(keys)
    assert len(found["validation"] | found["test"]) == rows


def test_the_split_depends_on_the_prompts_alone_and_not_on_their_order() -> None:
    examples = [example(str(i)) for i in range(50)]
    forth, back = (split(e, Eval(share=0.2)) for e in (examples, examples[::-1]))
    assert {e.key for e in forth["test"]} == {e.key for e in back["test"]}
    assert len(forth["test"]) == len(forth["validation"]) == 5


@pytest.mark.parametrize("config", [Eval(rows=3), Eval(rows=9), Eval(share=0.01)])
def test_a_split_that_leaves_nothing_is_a_usage_problem(config: Eval) -> None:
    with pytest.raises(UsageProblem, match=r"eval\.rows"):
        split([example(key) for key in "abc"], config)


def test_every_row_comes_once_in_each_pass() -> None:
    lengths = [3, 1, 4, 1, 5, 9, 2, 6]
    steps, seen = step_batches(lengths, 10, seed=0), Counter[int]()
    while seen.total() < 3 * len(lengths):
        batch = next(steps)
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= 10
        seen.update(batch)
    assert set(seen.values()) == {3}


def test_a_resumed_training_sees_the_same_batches() -> None:
    lengths = [3, 1, 4, 1, 5]
    whole = list(islice(step_batches(lengths, 6, seed=1), 12))
    assert list(islice(batches_from(lengths, 6, seed=1, step=5), 7)) == whole[5:]
    assert list(islice(step_batches(lengths, 6, seed=2), 12)) != whole


def test_groups_hold_rows_of_similar_length() -> None:
    lengths = [100, 10, 12, 400, 11, 120]
    groups = similar_lengths(range(6), lengths)
    assert sorted(row for group in groups for row in group) == list(range(6))
    assert groups == [[1, 4, 2], [0, 5], [3]]


def test_labels_are_compared_as_text(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a", "label": 5}))
    assert read(path)[0][0].label == "5"
