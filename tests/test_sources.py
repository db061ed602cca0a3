import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import Input, Storage
from pipelines.errors import UsageProblem
from pipelines.reading import BadLine, read_parquet, read_rows
from pipelines.sources import find_files, plan_blocks

FS = fsspec.filesystem("file")


def files(path: Path, **settings: Any) -> list[str]:
    found = find_files(Input(path=str(path), **settings), Storage())
    return [Path(file.path).name for file in found]


def rows(path: Path, block_rows: int, **settings: Any) -> list[Any]:
    """All rows, read block by block."""
    found = find_files(Input(path=str(path), **settings), Storage())
    blocks = plan_blocks(found, FS, block_rows)
    assert len({block.name for block in blocks}) == len(blocks)
    read = []
    for block in blocks:
        if block.file.format == "parquet":
            got = read_parquet(block, FS).to_pylist()
        else:
            got = read_rows(block, FS)
        assert len(got) == block.num_rows
        assert block.first_row + len(got) <= sum(b.num_rows for b in blocks)
        read += got
    return read


EXPECTED = [{"id": str(i), "prompt": f"line\n{i}, “quoted”"} for i in range(10)]


def as_jsonl(path: Path) -> Path:
    return write_jsonl(path / "a.jsonl", EXPECTED)


def as_gzip(path: Path) -> Path:
    with gzip.open(path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in EXPECTED)
    return path / "a.jsonl.gz"


def as_csv(path: Path) -> Path:
    lines = ["id,prompt", *(f'{row["id"]},"{row["prompt"]}"' for row in EXPECTED)]
    (path / "a.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    return path / "a.csv"


def as_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(EXPECTED), path / "a.parquet", row_group_size=4)
    return path / "a.parquet"


@pytest.mark.parametrize("write", [as_jsonl, as_gzip, as_csv, as_parquet])
@pytest.mark.parametrize("block_rows", [1, 3, 10, 99])
def test_blocks_of_any_size_hold_every_row_once(
    tmp_path: Path, write: Any, block_rows: int
) -> None:
    assert rows(write(tmp_path), block_rows) == EXPECTED


@pytest.mark.parametrize("write", [as_gzip, as_csv, as_parquet])
def test_blocks_may_be_read_in_any_order(tmp_path: Path, write: Any) -> None:
    found = find_files(Input(path=str(write(tmp_path))), Storage())
    blocks = plan_blocks(found, FS, 2)
    read = {}
    for block in [*blocks[3:], *blocks[:3], *reversed(blocks)]:
        is_parquet = block.file.format == "parquet"
        got = read_parquet(block, FS).to_pylist() if is_parquet else read_rows(block, FS)
        read[block.name] = got
    assert [row for name in sorted(read) for row in read[name]] == EXPECTED


def test_blocks_of_long_rows_hold_fewer_of_them(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "x" * 500_000}] * 40)
    blocks = plan_blocks(find_files(Input(path=str(path)), Storage()), FS)
    assert sum(block.num_rows for block in blocks) == 40
    assert max(block.num_rows for block in blocks) <= 8


@settings(max_examples=40)
@given(
    lines=st.lists(st.sampled_from(["", '{"a": 1}', '{"b": "x"}', "oops"]), max_size=30),
    ending=st.sampled_from(["\n", "\r\n"]),
    closed=st.booleans(),
    block_rows=st.integers(1, 7),
)
def test_blank_lines_are_no_rows_wherever_they_are(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    ending: str,
    closed: bool,
    block_rows: int,
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes((ending.join(lines) + (ending if closed else "")).encode())
    got = rows(path, block_rows)
    texts = [row.text.strip() if isinstance(row, BadLine) else json.dumps(row) for row in got]
    assert texts == [line for line in lines if line]


def test_a_line_that_is_no_object_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n\xff\xfe\n')
    good, *bad = rows(path, 10)
    assert good == {"a": 1}
    assert [line.problem.kind for line in bad] == ["invalid_row"] * 3


def test_a_csv_row_of_the_wrong_width_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,prompt\n1,a\n2\n3,b,c\n4,d\n")
    assert [isinstance(row, BadLine) for row in rows(path, 10)] == [False, True, True, False]


def test_folders_and_globs_are_read_in_name_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "sub/a.jsonl", "c.txt", "_hidden.jsonl", ".x/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / name, [{"prompt": name}])
    assert files(tmp_path) == ["b.jsonl", "a.jsonl"]
    assert files(tmp_path / "*.jsonl") == ["_hidden.jsonl", "b.jsonl"]
    assert files(tmp_path / "**/*.jsonl", format="jsonl").count("a.jsonl") == 1
    assert files(tmp_path / "c.txt", format="jsonl") == ["c.txt"]


@pytest.mark.parametrize("name", ["missing.jsonl", "none-*.jsonl", "notes.txt"])
def test_nothing_to_read_is_a_usage_problem(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageProblem, match=r"input\.path"):
        files(tmp_path / name)


def test_a_broken_parquet_file_is_a_usage_problem(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UsageProblem, match="cannot be read"):
        rows(tmp_path / "a.parquet", 10)
