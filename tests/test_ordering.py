"""How a sorted input is dealt to the replicas."""

from pathlib import Path

import pyarrow as pa

from pipelines.ordering import (
    SORT_KEYS,
    order_once,
    ordered_blocks,
    read_ordered,
    with_sort_keys,
    write_ordered,
)
from pipelines.requests import Request
from pipelines.schema import INTERNAL
from pipelines.storage import Directory, Storage

HANDS, BLOCK = 2, 32


def dealt(directory: Directory, requests: list[Request]) -> list[list[Request]]:
    """The blocks in the order in which replicas get them."""
    names = [str(i) for i in range(len(requests))]
    table = pa.table(
        {
            "row_id": names,
            "_request": [request.to_json() for request in requests],
            "_block": pa.array([""] * len(names), INTERNAL.field("_block").type),
        }
    )
    table = with_sort_keys(table, {}, HANDS).sort_by([(key, "ascending") for key in SORT_KEYS])

    def sort() -> None:
        for number in range(0, -(-len(names) // BLOCK)):
            write_ordered(directory, number, table.slice(number * BLOCK, BLOCK))
            assert ordered_blocks(directory, HANDS) == [], "there may be more to come"

    order_once(directory, sort)
    blocks = ordered_blocks(directory, HANDS)
    read = [read_ordered(block, directory)["_request"].to_pylist() for block in blocks]
    assert sum(map(len, read)) == len(names)
    return [[Request.from_json(text) for text in texts] for texts in read]


def asked(text: str, max_tokens: int, system: str = "") -> Request:
    turns = [{"role": "system", "content": system}] if system else []
    return Request([*turns, {"role": "user", "content": text}], {"max_tokens": max_tokens})


def test_every_replica_gets_its_share_of_the_long_answers_first(tmp_path: Path) -> None:
    requests = [asked(f"question {i}", 256 if i % 8 == 0 else 4) for i in range(256)]
    blocks = dealt(Directory(str(tmp_path), Storage()), requests)
    long = [sum(r.sampling["max_tokens"] == 256 for r in block) for block in blocks]
    assert sum(long) == sum(long[:HANDS]) == 32
    assert min(long[:HANDS]) >= 8


def test_also_when_all_rows_have_one_system_prompt(tmp_path: Path) -> None:
    system = "rules of this desk " * 40
    requests = [asked(f"question {i}", 256 if i % 8 == 0 else 4, system) for i in range(256)]
    blocks = dealt(Directory(str(tmp_path), Storage()), requests)
    long = [sum(r.sampling["max_tokens"] == 256 for r in block) for block in blocks]
    assert min(long[:HANDS]) >= 8


def test_the_rows_of_one_document_stay_together(tmp_path: Path) -> None:
    documents = [f"document {i} " * 40 for i in range(32)]
    requests = [asked(f"question {i}", 4 + i % 5, documents[i * 7 % 32]) for i in range(256)]
    blocks = dealt(Directory(str(tmp_path), Storage()), requests)
    for document in documents:
        holding = [b for b in blocks if any(r.messages[0]["content"] == document for r in b)]
        # A block may end within a document's rows.
        assert len(holding) <= 2
