"""Everything that can be found wrong before a cent is spent."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from jobs.cluster import connect
from jobs.route_plans import route_plan
from jobs.route_spending import spent_on
from jobs.tiers import check_tier
from pipelines.blocks import Block, InputFile
from pipelines.calibrated_config import Calibrated
from pipelines.columns import merge
from pipelines.config import Input, RunConfig
from pipelines.embedders import embedder_source
from pipelines.errors import UsageProblem
from pipelines.intake import Dialect
from pipelines.keys import policy_digest
from pipelines.path_template import is_template
from pipelines.prices import PriceList, price_list
from pipelines.reading import parquet_schema, read_rows
from pipelines.route_config import Route, Rules
from pipelines.route_plan import RoutePlan, route_by
from pipelines.routing import build_policy, columns_of
from pipelines.scan import (
    Scan,
    check_columns,
    duplicates,
    rows_with_ids,
    scan_block,
    scan_parquet_ids,
)
from pipelines.schema import without_views
from pipelines.sources import file_version, find_files, plan_blocks
from pipelines.storage import Directory, open_filesystem
from pipelines.tier import VLLM

_INLINE_ROWS = 20_000
"""Up to here reading the input once takes less time than starting Ray."""
_SHOWN_DUPLICATES = 5
_IDS_AT_ONCE = 4_000_000
"""Bounds the memory of the search for duplicate ids; the digests lie in Ray's object store."""


@dataclass(frozen=True)
class Plan:
    """A run that may start: its input, cut into blocks, and all that its stages need."""

    config: RunConfig
    dialect: Dialect
    versions: list[str]
    blocks: list[Block]
    schema: pa.Schema
    policy: bytes
    prices: PriceList
    route_plan: RoutePlan | None = None

    @property
    def route(self) -> Route:
        """What the run goes by."""
        return route_by(self.config.route, self.route_plan)

    @property
    def num_rows(self) -> int:
        return sum(block.num_rows for block in self.blocks)


def check_config(config: RunConfig, today: date) -> PriceList:
    """Checks that need no input: prices, models, policies.

    Raises:
        UsageProblem: naming the key and the remedy.
    """
    prices = check_decisions(config, today)
    if isinstance(config.route, Calibrated) and config.route.embedding is not None:
        embedder_source(config.route.embedding, "route.embedding")
    for tier in config.tiers:
        if isinstance(tier.engine, VLLM):
            _check_model(f"tiers.{tier.name}.engine", tier.engine)
            _check_adapters(f"tiers.{tier.name}.engine", tier.engine)
        check_tier(tier)
    if config.response_cache and config.response_cache.semantic:
        embedder_source(config.response_cache.semantic)
    return prices


def check_decisions(config: RunConfig, today: date) -> PriceList:
    """Those of the checks that look at nothing on this machine: prices and policies.

    Raises:
        UsageProblem: naming the key and the remedy.
    """
    prices = price_list(config, today)
    if not isinstance(config.route, Calibrated):
        build_policy(config.route)
    return prices


def plan_run(config: RunConfig, today: date, calibrated: bool = True) -> Plan:
    """Look at the whole input and at the output's place; start nothing.

    Args:
        calibrated: whether a route that learns must have learned already.

    Raises:
        UsageProblem: whatever would make the run fail or lie later.
    """
    for key, path in (("input.path", config.input.path), ("output.path", config.output.path)):
        if config.nightly and is_template(path):
            raise UsageProblem(
                f"{key}: {path}: names many; run `nightmill nightly`, or give the one with --set"
            )
    prices = check_config(config, today)
    learned = route_plan(config) if calibrated else None
    files = find_files(config.input, config.storage)
    _check_apart(config)
    fs, _ = open_filesystem(config.input.path, config.storage)
    blocks = plan_blocks(files, fs, config.input.block_rows)
    if not blocks:
        raise UsageProblem(f"input.path: {config.input.path}: holds no rows; check the file")
    dialect = Dialect(
        columns=config.input.columns,
        format=_format(config.input, files, blocks, fs),
        ignore_model=config.input.ignore_model,
        tiers=tuple(tier.name for tier in config.tiers),
        defaults=config.sampling.given(),
        keyed_by=keyed_by(config),
    )
    schema = _inspect(files, blocks, dialect, fs)
    check_columns(schema, dialect)
    _check_named_columns(config, schema)
    directory = check_writable(config)
    if learned is not None:
        learned = spent_on(learned, config, directory, sum(block.num_rows for block in blocks))
    versions = [file_version(file, fs) for file in files]
    policy = policy_digest(config, learned.digest if learned else b"")
    return Plan(config, dialect, versions, blocks, schema, policy, prices, learned)


def keyed_by(config: RunConfig) -> tuple[str, ...]:
    """Columns that keep rows apart: what routing looks at, and the tenant."""
    tenant = config.input.columns.tenant
    # Routing may look at the tenant too.
    return tuple(dict.fromkeys([*columns_of(config.route), *((tenant,) if tenant else ())]))


def check_writable(config: RunConfig) -> Directory:
    """Raises: UsageProblem if the output cannot be written."""
    try:
        directory = Directory(config.output.path, config.storage)
        directory.make()
        directory.write(".nightmill/writable", b"")
        directory.remove(".nightmill/writable")
    except UsageProblem:
        raise
    # A storage driver raises what its library raises: no credentials, no such host.
    except Exception as error:
        raise UsageProblem(
            f"output.path: {config.output.path}: cannot be written ({error}); "
            "choose another directory or mend its permissions"
        ) from error
    return directory


def _check_apart(config: RunConfig) -> None:
    """Results inside the input folder would be its next rows."""
    fs, source = open_filesystem(config.input.path, config.storage)
    _, output = open_filesystem(config.output.path, config.storage)
    if fs.isdir(source) and f"{output}/".startswith(f"{source.rstrip('/')}/"):
        raise UsageProblem(
            f"output.path: {config.output.path}: lies in the input folder; choose another"
        )


def _check_model(key: str, engine: VLLM) -> None:
    folder = Path(engine.model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageProblem(f"{key}.model: {engine.model} holds no config.json; is it a model?")
        return
    if folder.is_absolute() or engine.model.startswith(".") or engine.model.count("/") != 1:
        raise UsageProblem(
            f"{key}.model: {engine.model}: no such folder; correct the path, relative ones "
            f"start at {os.getcwd()}"
        )
    if (folder.parent).is_dir():
        raise UsageProblem(f"{key}.model: {engine.model}: no such folder; correct the path")
    if not re.fullmatch(r"[0-9a-f]{40}", engine.revision or ""):
        raise UsageProblem(
            f"{key}.revision: pin {engine.model} to a commit of the hub, 40 hex digits; with a "
            "branch a new upload would change answers that the response cache vouches for"
        )


def _check_adapters(key: str, engine: VLLM) -> None:
    """Folders only: keys and the response cache vouch for an adapter's very weights."""
    for name, folder in engine.lora_adapters.items():
        if not Path(folder, "adapter_config.json").is_file():
            raise UsageProblem(
                f"{key}.lora_adapters.{name}: {folder} holds no adapter_config.json; give the "
                "folder of a LoRA adapter"
            )


def _format(config: Input, files: Sequence[InputFile], blocks: Sequence[Block], fs: Any) -> str:
    """The one format of all files; OpenAI-batch lines are told by their members."""
    formats = sorted({file.format for file in files})
    if len(formats) > 1:
        raise UsageProblem(
            f"input.path: mixes {' and '.join(formats)} files; give them one at a time"
        )
    if config.format != "auto" or formats != ["jsonl"]:
        return formats[0] if config.format == "auto" else config.format
    rows = (row for row in read_rows(blocks[0], fs) if isinstance(row, dict))
    first = next(rows, {})
    return "openai_batch" if "custom_id" in first and "body" in first else "jsonl"


def _inspect(
    files: Sequence[InputFile],
    blocks: Sequence[Block],
    dialect: Dialect,
    fs: Any,
) -> pa.Schema:
    """The schema of the user's columns; refuses duplicate ids on the way."""
    if dialect.format == "parquet":
        schemas = [without_views(parquet_schema(file, fs)) for file in files]
        try:
            schema = pa.unify_schemas(schemas)
        except pa.ArrowException as error:
            raise UsageProblem(
                f"input.path: the files' schemas disagree ({error}); give their columns one type"
            ) from error
        column = dialect.id_column
        if column in schema.names:
            with_ids = [file for file, s in zip(files, schemas, strict=True) if column in s.names]
            digests = look_at_each(scan_parquet_ids, [(f, column, fs) for f in with_ids], blocks)
            _refuse_duplicates(digests, blocks, dialect, fs)
        return schema
    scans: list[Scan] = look_at_each(scan_block, [(block, dialect, fs) for block in blocks], blocks)
    _refuse_duplicates([scan.ids for scan in scans], blocks, dialect, fs)
    return merge(scan.votes for scan in scans)


def look_at_each(look: Any, calls: Sequence[tuple[Any, ...]], blocks: Sequence[Block]) -> list[Any]:
    """Call for each, in Ray tasks where the input is large."""
    if sum(block.num_rows for block in blocks) <= _INLINE_ROWS:
        return [look(*call) for call in calls]
    connect()
    task = ray.remote(look)
    results: list[Any] = ray.get([task.remote(*call) for call in calls])
    return results


def _refuse_duplicates(
    digests: Sequence[Any], blocks: Sequence[Block], dialect: Dialect, fs: Any
) -> None:
    shares = max(-(-sum(len(own) for own in digests) // _IDS_AT_ONCE), 1)
    found = [duplicates(digests, share, shares) for share in range(shares)]
    repeated = np.sort(np.concatenate(found))
    if not len(repeated):
        return
    shown: dict[str, list[str]] = {}
    for block in blocks:
        for given, ordinal in rows_with_ids(block, dialect, repeated, fs):
            shown.setdefault(given, []).append(f"row {ordinal} of {block.file.path}")
        if sum(len(places) > 1 for places in shown.values()) >= _SHOWN_DUPLICATES:
            break
    listed = [f"{given!r} ({' and '.join(p[:2])})" for given, p in shown.items() if len(p) > 1]
    raise UsageProblem(
        f"input: column {dialect.id_column}: {len(repeated)} ids occur more than once, "
        f"first {', '.join(listed[:_SHOWN_DUPLICATES])}. To fix: make ids unique, or set "
        "input.columns.id to another column"
    )


def _check_named_columns(config: RunConfig, schema: pa.Schema) -> None:
    tenant = config.input.columns.tenant
    if tenant and tenant not in schema.names:
        raise UsageProblem(
            f"input.columns.tenant: the input has no column {tenant!r}; it has "
            f"{', '.join(schema.names)}"
        )
    if not isinstance(config.route, Rules):
        return
    for i, rule in enumerate(config.route.rules):
        for name in rule.when.columns:
            if name not in schema.names:
                raise UsageProblem(
                    f"route.rules.{i}.when.columns.{name}: the input has no such column; "
                    f"it has {', '.join(schema.names)}"
                )
