"""Stages that take some rows of a block, where there are none to take: bad or answered before."""

import pyarrow as pa
from conftest import tier

from actors.known_answers import SERVED, KnownAnswers
from actors.referee import Referee
from actors.semantic_recall import SemanticRecall
from pipelines.schema import TRAVELLING
from pipelines.tier import Tier


def decided(status: str) -> pa.Table:
    row = {**dict.fromkeys(TRAVELLING.names), "row_id": "r1", "status": status, "escalations": 0}
    return pa.Table.from_pylist([row], schema=TRAVELLING)


def test_a_block_without_open_rows_passes_every_recall() -> None:
    table = decided("error")
    names = ("known_key", *SERVED)
    known = pa.table({name: pa.array([], pa.string()) for name in names})
    assert KnownAnswers(known, ()).recall(table).equals(table)
    # It looks at nothing but the rows before it knows that none is eligible.
    recall = SemanticRecall.__new__(SemanticRecall)
    recall._keyed_by = ()
    assert recall._eligible(table) == []


def test_a_tier_with_a_fallback_rules_on_blocks_without_an_outage() -> None:
    table = decided("ok")
    told = Tier.model_validate({**tier("only"), "fallback": "spare"})
    assert Referee(told, None).rule(table, [0]).equals(table)
