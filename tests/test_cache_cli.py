import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
import yaml
from cached import KEYS, REVISION, entries, filled, opened, questions, unit_vectors
from click.testing import CliRunner, Result
from conftest import ROOT, MakeConfig

from jobs.cache_cli import cache
from jobs.cli import main
from pipelines.cache_entries import RESPONSES, first_release_digest
from pipelines.config import ResponseCacheConfig

VECTORS = unit_vectors(len(KEYS))


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> str:
    """A configuration whose cache holds three runs, models, tenants and days of ten entries."""
    section = ResponseCacheConfig(path=str(tmp_path / "cache"))
    warnings: list[str] = []
    for i in range(3):
        keys, when = KEYS[10 * i : 10 * i + 10], datetime.now(UTC) - timedelta(days=10 * i)
        fields = {"run_id": f"run{i}", "model": f"o'model{i}", "tenant": f"t{i}", "tier": "only"}
        rows = entries(keys, created_at=when, **fields)
        vectors = VECTORS[10 * i : 10 * i + 10]
        filled(section, warnings, (rows, questions(keys, vectors, created_at=when)))
    assert not warnings
    return written(tmp_path, make_config([], response_cache={"path": section.path}))


def written(folder: Path, config: Any) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return str(path)


def said(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["cache", *arguments])


def left(config: str) -> list[str]:
    section = ResponseCacheConfig(path=str(Path(config).parent / "cache"))
    database = lancedb.connect(section.path)
    stored = [
        sorted(key.hex() for key in database.open_table(name).to_arrow()["request_key"].to_pylist())
        for name in (RESPONSES, f"questions_{REVISION}")
    ]
    assert stored[0] == stored[1]
    assert sorted(opened(section, []).recall(KEYS)) == stored[0]
    return stored[0]


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        (["--entry", KEYS[3]], KEYS[3:4]),
        (["--run", "run1"], KEYS[10:20]),
        (["--model", "o'model2"], KEYS[20:30]),
        (["--tenant", "t0"], KEYS[:10]),
        (["--older-than", "5d"], KEYS[10:30]),
        (["--older-than", "360h", "--tenant", "t1"], []),
        (["--expired", "--set", "response_cache.ttl_days=15"], KEYS[20:30]),
        (["--run", "run0", "--model", "o'model0"], KEYS[:10]),
        (["--run", "run0", "--model", "o'model1"], []),
        (["--run", "nobody's"], []),
        (["--all"], KEYS[:30]),
    ],
)
def test_purging_removes_what_is_meant_from_all_tables(
    config: str, options: list[str], removed: list[str]
) -> None:
    count = {"entries": len(removed), "questions": len(removed)}
    dry = said("purge", config, *options, "--dry-run", "--json")
    assert json.loads(dry.stdout) == {**count, "dry_run": True}
    assert left(config) == KEYS[:30]
    assert json.loads(said("purge", config, *options, "--json").stdout)["entries"] == len(removed)
    assert left(config) == sorted(set(KEYS[:30]) - set(removed))


@pytest.mark.parametrize(
    "options", [[], ["--older-than", "soon"], ["--entry", "xyz"], ["--expired"], ["--dry-run"]]
)
def test_purging_removes_nothing_unless_it_is_said_what(config: str, options: list[str]) -> None:
    assert said("purge", config, *options).exit_code == 2
    assert left(config) == KEYS[:30]


def test_stats_count_by_what_one_may_purge(config: str) -> None:
    stats = json.loads(said("stats", config, "--json").stdout)
    assert (stats["entries"], stats["questions"]) == (30, 30)
    assert stats["by_model"] == {f"o'model{i}": 10 for i in range(3)}
    assert stats["by_tenant"] == {f"t{i}": 10 for i in range(3)}
    assert stats["by_tier"] == {"only": 30}
    assert [table["damaged"] for table in stats["tables"]] == [0, 0]
    assert stats["oldest"] < stats["newest"]
    plain = said("stats", config).output
    assert "30 entries, 30 questions" in plain
    assert f"questions_{REVISION}" in plain


def test_a_broken_table_is_shown_and_mended(config: str) -> None:
    table = Path(config).parent / "cache" / f"{RESPONSES}.lance"
    newest = max((table / "_versions").glob("*.manifest"), key=lambda f: f.stat().st_mtime_ns)
    newest.write_bytes(b"torn")
    assert "not readable" in said("stats", config).output
    assert said("purge", config, "--all").exit_code == 1
    assert json.loads(said("compact", config, "--json").stdout)["brought_back"] == 30
    assert left(config) == KEYS[:30]


def test_compacting_brings_a_cache_of_the_first_release_up_to_date(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    section = ResponseCacheConfig(path=str(tmp_path / "cache"))
    rows = [
        {**row, "digest": first_release_digest(row)}
        for row in entries(KEYS[:9]).drop_columns(["tenant", "scope"]).to_pylist()
    ]
    rows[4]["response"] = "tampered"
    schema = entries([]).drop_columns(["tenant", "scope"]).schema
    schema = schema.set(0, pa.field("request_key", pa.binary(16), nullable=False))
    schema = schema.with_metadata({"nightmill.response_cache": "1"})
    database = lancedb.connect(section.path)
    database.create_table(RESPONSES, pa.Table.from_pylist(rows, schema=schema))
    warnings: list[str] = []
    assert opened(section, warnings).recall(KEYS) == {}
    filled(section, warnings, entries(KEYS[9:12]))
    assert all("nightmill cache compact" in warning for warning in warnings)
    assert len(warnings) == 2
    config = written(tmp_path, make_config([], response_cache={"path": section.path}))
    assert said("stats", config).exit_code == 1
    assert json.loads(said("compact", config, "--json").stdout) == {"dropped": 0, "brought_back": 8}
    assert set(opened(section, warnings).recall(KEYS)) == set(KEYS[:9]) - {KEYS[4]}
    assert len(warnings) == 2


def test_a_configuration_without_a_cache_is_named(tmp_path: Path, make_config: MakeConfig) -> None:
    config = written(tmp_path, make_config([]))
    result = said("stats", config)
    assert result.exit_code == 2


def test_every_command_and_option_stands_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text().split("Caring for the response cache")[1]
    for name, command in cache.commands.items():
        assert f"nightmill cache {name} CONFIG" in text
        for option in command.params:
            if option.opts[0] not in ("config", "--json", "--set"):
                assert option.opts[0] in text
