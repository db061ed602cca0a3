import csv
import json
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeConfig, write_jsonl

from jobs.preflight import plan_run
from pipelines.errors import UsageProblem
from pipelines.intake import read_block
from pipelines.requests import Request
from pipelines.scan import duplicates
from pipelines.schema import user_columns

FS = fsspec.filesystem("file")
TODAY = date(2026, 11, 24)


def taken(make_config: MakeConfig, source: Any, **sections: Any) -> pa.Table:
    """The whole input as the first stage makes it."""
    plan = plan_run(make_config(source, **sections), TODAY)
    tables = [read_block(b, plan.dialect, plan.schema, plan.policy, FS) for b in plan.blocks]
    return pa.concat_tables(tables)


def test_user_columns_come_out_unchanged_and_typed(make_config: MakeConfig) -> None:
    rows = [
        {"id": "a", "prompt": "x", "n_words": 1, "meta": {"k": 1}, "score": 1},
        {"id": "b", "prompt": "y", "n_words": None, "meta": {"k": 2}, "score": 2.5},
    ]
    table = user_columns(taken(make_config, rows))
    assert table.to_pylist() == rows
    assert table.schema.field("score").type == pa.float64()


def test_values_of_no_common_type_are_carried_as_json(make_config: MakeConfig) -> None:
    rows = [{"prompt": "x", "label": 1}, {"prompt": "y", "label": ["a"]}, {"prompt": "z"}]
    labels = taken(make_config, rows)["label"].to_pylist()
    assert labels == ["1", '["a"]', None]


def test_broken_rows_spoil_neither_types_nor_neighbours(make_config: MakeConfig) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
        {"id": 2, "messages": "hello", "max_tokens": "many"},
        {"id": 3, "messages": [{"role": "user", "content": "\ud800"}], "max_tokens": 7},
    ]
    table = taken(make_config, rows)
    assert table.schema.field("max_tokens").type == pa.int64()
    assert table["messages"].to_pylist()[0] == rows[0]["messages"]
    assert table["status"].to_pylist() == [None, "error", "error"]
    assert table["row_id"].to_pylist() == ["1", "2", "3"]
    # What the typed columns cannot hold is kept whole for errors/ and retry.
    assert [json.loads(raw) for raw in table["_raw"].to_pylist()[1:]] == rows[1:]


def test_a_value_that_cannot_be_stored_makes_an_error_row(make_config: MakeConfig) -> None:
    rows = [{"prompt": "x", "note": "fine"}, {"prompt": "y", "note": "\ud800"}]
    table = taken(make_config, rows)
    assert table["status"].to_pylist() == [None, "error"]
    assert "column note" in table["error"].to_pylist()[1]


def test_a_prompt_and_its_message_form_share_a_key(make_config: MakeConfig) -> None:
    rows = [{"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}]
    first, second = taken(make_config, rows)["request_key"].to_pylist()
    assert first == second


def test_the_same_rows_have_the_same_keys_in_every_format(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "a, b", "max_tokens": 8, "temperature": 0.5, "seed": 3},
        {"prompt": "c", "max_tokens": None, "temperature": None, "seed": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    lines = ["prompt,max_tokens,temperature,seed", '"a, b",8,0.5,3', "c,,,"]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    keys = [
        taken(make_config, source)["request_key"].to_pylist()
        for source in (rows, tmp_path / "p.parquet", tmp_path / "p.csv")
    ]
    assert keys[0] == keys[1] == keys[2]


def test_messages_in_parquet_structs_lose_the_nulls_that_structs_add(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    chat = [{"role": "user", "content": "x"}]
    padded = [[{**chat[0], "name": None}], [{"role": "user", "content": "y", "name": "z"}]]
    pq.write_table(pa.table({"messages": padded}), tmp_path / "p.parquet")
    as_json = taken(make_config, [{"messages": chat}])["request_key"].to_pylist()
    assert taken(make_config, tmp_path / "p.parquet")["request_key"].to_pylist()[:1] == as_json


def test_parquet_files_of_one_input_may_differ_in_columns(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    pq.write_table(pa.table({"prompt": ["x"], "a": [1]}), folder / "1.parquet")
    pq.write_table(pa.table({"b": ["q"], "prompt": ["y"]}), folder / "2.parquet")
    table = user_columns(taken(make_config, folder))
    assert table.to_pylist() == [
        {"prompt": "x", "a": 1, "b": None},
        {"prompt": "y", "a": None, "b": "q"},
    ]


def test_columns_that_only_look_like_sampling_fields_may_be_left_alone(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    rows = [{"prompt": "x", "n": "seven", "stop": {"bus": 9}, "max_tokens": 5}]
    assert taken(make_config, rows)["status"].to_pylist() == ["error"]
    columns = {"sampling": ["max_tokens"]}
    source = {"path": str(tmp_path / "prompts.jsonl"), "columns": columns}
    table = taken(make_config, rows, input=source)
    assert table["status"].to_pylist() == [None]
    assert user_columns(table).to_pylist() == rows


def test_a_column_that_routing_looks_at_is_in_the_key(make_config: MakeConfig) -> None:
    """Or a hard row would be answered by the tier of an easy one with the same prompt."""
    rule = {"when": {"columns": {"level": ["easy"]}}, "tier": "only"}
    route = {"policy": "rules", "rules": [rule], "otherwise": "only"}
    rows = [{"prompt": "x", "level": level} for level in ("easy", "hard", "easy")]
    a, b, c = taken(make_config, rows, route=route)["request_key"].to_pylist()
    assert a == c != b


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": "x", "\\ud800": 1}',
        b'{"messages": "' + b"[" * 100_000 + b'"}',
        b'{"prompt": "x", "note": {"a": "\\udfff"}}',
        b'{"prompt": "x", "max_tokens": 123456789012345678901234567890}',
        b'{"prompt": NaN}',
        b"[" * 100_000,
    ],
)
def test_a_strange_line_is_one_error_row(
    make_config: MakeConfig, tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "strange.jsonl"
    path.write_bytes(b'{"prompt": "before"}\n' + line + b'\n{"prompt": "after"}\n')
    assert taken(make_config, path)["status"].to_pylist() == [None, "error", None]


def test_structs_without_members_and_string_views_can_be_written(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    table = user_columns(taken(make_config, [{"prompt": "x", "meta": {}}]))
    assert table["meta"].to_pylist() == ["{}"]
    views = pa.table({"prompt": pa.array(["x"], pa.string_view())})
    pq.write_table(views, tmp_path / "v.parquet")
    assert taken(make_config, tmp_path / "v.parquet").schema.field("prompt").type == pa.string()


def test_broken_utf8_in_parquet_is_one_error_row(make_config: MakeConfig, tmp_path: Path) -> None:
    prompts = pa.array([b"fine", b"\xff\xfe", b"fine too"]).view(pa.string())
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "b.parquet")
    table = taken(make_config, tmp_path / "b.parquet")
    assert table["status"].to_pylist() == [None, "error", None]


def test_files_whose_types_disagree_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    pq.write_table(pa.table({"prompt": ["x"], "a": [2**60 + 1]}), folder / "1.parquet")
    pq.write_table(pa.table({"prompt": ["y"], "a": [0.5]}), folder / "2.parquet")
    with pytest.raises(UsageProblem, match="disagree"):
        taken(make_config, folder)


def test_a_csv_with_a_repeated_column_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,note,note\nx,1,2\n")
    with pytest.raises(UsageProblem, match="note stand twice"):
        taken(make_config, tmp_path / "a.csv")


def test_rows_without_an_id_are_named_by_their_place(make_config: MakeConfig) -> None:
    table = taken(make_config, [{"prompt": "same"}, {"prompt": "same"}])
    first, second = table["row_id"].to_pylist()
    assert first != second
    assert taken(make_config, [{"prompt": "same"}] * 2)["row_id"].to_pylist() == [first, second]


def batch_row(custom_id: str, **body: Any) -> dict[str, Any]:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], **body}
    url = "/v1/chat/completions"
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def test_openai_batch_input_is_recognised(make_config: MakeConfig) -> None:
    rows = [
        batch_row("a", max_tokens=5),
        batch_row("b", model="only"),
        batch_row("c", model="gpt-x"),
        batch_row("d", best_of=2),
    ]
    table = taken(make_config, rows)
    assert table["row_id"].to_pylist() == list("abcd")
    assert table["error_kind"].to_pylist() == [None, None, "invalid_request", "unsupported"]
    assert "input.ignore_model" in table["error"].to_pylist()[2]
    plain = taken(make_config, [{"prompt": "x", "max_tokens": 5}])
    assert table["request_key"].to_pylist()[0] == plain["request_key"].to_pylist()[0]


def test_openai_batch_input_may_ask_for_embeddings(make_config: MakeConfig) -> None:
    url = {"method": "POST", "url": "/v1/embeddings"}
    rows = [
        {"custom_id": "a", **url, "body": {"model": "auto", "input": "x", "dimensions": 8}},
        {"custom_id": "b", **url, "body": {"model": "auto", "input": ["x", "y"]}},
        {"custom_id": "c", "url": "/v1/moderations", "body": {"input": "x"}},
    ]
    table = taken(make_config, rows)
    request = Request.from_json(table["_request"].to_pylist()[0])
    assert request.messages == [{"role": "user", "content": "x"}]
    assert request.sampling == {"dimensions": 8, "encoding_format": "float"}
    assert table["error_kind"].to_pylist() == [None, "invalid_row", "unsupported"]


def test_a_completions_prompt_is_asked_as_a_prompt_is(make_config: MakeConfig) -> None:
    rows = [{"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 5}}]
    table = taken(make_config, rows)
    plain = taken(make_config, [{"prompt": "x", "max_tokens": 5}])
    assert table["error_kind"].to_pylist() == [None]
    assert table["request_key"] == plain["request_key"]


NESTED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_object"},
    "structured_outputs": {"choice": ["a", "b"]},
    "chat_template_kwargs": {"enable_thinking": False},
    "logit_bias": {"5": -1.0},
    "stop_token_ids": [1, 2],
    "bad_words": ["x"],
}
FLAT: dict[str, Any] = {
    "n": 2, "seed": 2**62 + 1, "temperature": 0.5, "logprobs": True, "top_logprobs": 3,
    "ignore_eos": False, "lora": "law", "stop": "1",
}  # fmt: skip


def test_fields_may_be_text_where_a_format_has_nothing_better(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    cells = {**{k: json.dumps(v) for k, v in NESTED.items()}, **FLAT}
    flat = pa.table({name: [value] for name, value in {"prompt": "x", **cells}.items()})
    pq.write_table(flat, tmp_path / "p.parquet")
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([flat.column_names, list(flat.to_pylist()[0].values())])
    write_jsonl(tmp_path / "l.jsonl", [{"prompt": "x", **NESTED, **FLAT}])
    for name in ("p.parquet", "c.csv", "l.jsonl"):
        table = taken(make_config, tmp_path / name)
        assert table["error"].to_pylist() == [None], name
        request = Request.from_json(table["_request"].to_pylist()[0])
        assert request.sampling == {**NESTED, **FLAT}, name


def test_models_of_a_batch_file_may_be_ignored(make_config: MakeConfig, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "b.jsonl", [batch_row("a", model="gpt-x")])
    table = taken(make_config, path, input={"path": str(path), "ignore_model": True})
    assert table["status"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "x"}], "there are text"),
        ([{"prompt": "x", "tier": "y"}], "tier"),
        ([{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}], "'a' (row 0 of"),
        ([], "holds no rows"),
    ],
)
def test_an_input_that_cannot_work_is_refused(
    make_config: MakeConfig, rows: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(UsageProblem) as caught:
        taken(make_config, rows)
    assert says in str(caught.value)


def test_duplicate_ids_are_found_across_parquet_files(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("1", "2"):
        pq.write_table(pa.table({"id": [7], "prompt": [name]}), folder / f"{name}.parquet")
    with pytest.raises(UsageProblem, match="'7'"):
        taken(make_config, folder)


def test_duplicates_are_those_that_occur_twice() -> None:
    digests = [np.array([b"a", b"b"], "S17"), np.array([b"b", b"c", b"c"], "S17")]
    assert duplicates(digests).tolist() == [b"b", b"c"]


def test_rules_over_a_missing_column_are_refused(make_config: MakeConfig) -> None:
    rule = {"when": {"columns": {"task": ["a"]}}, "tier": "only"}
    route = {"policy": "rules", "rules": [rule], "otherwise": "only"}
    with pytest.raises(UsageProblem, match=r"route\.rules\.0\.when\.columns\.task"):
        taken(make_config, [{"prompt": "x"}], route=route)
