import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import RunConfig
from pipelines.tier import Tier

ROOT = Path(__file__).parent.parent
RUN_CONFIGS = sorted(
    path
    for path in (ROOT / "configs").glob("*.yaml")
    if not path.name.startswith(("prices", "distill-"))
)
PRICE = {"input": 0.5, "output": 1.5}


def tier(name: str, **engine: Any) -> dict[str, Any]:
    """A tier of the deterministic engine that pays by the token."""
    return {
        "name": name,
        "engine": {"kind": "scripted", **engine},
        "billing": {"kind": "serverless", "usd_per_mtok": PRICE},
    }


def vllm_tier(engine_args: dict[str, Any] | None = None, model: str = "m", **fields: Any) -> Tier:
    """A tier of vLLM engines that pays by the hour."""
    raw = {
        "name": "t",
        "engine": {"kind": "vllm", "model": model, "engine_args": engine_args or {}},
        "billing": {"kind": "provisioned", "usd_per_gpu_hour": 1.0},
        **fields,
    }
    return Tier.model_validate(raw)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """A run of one scripted tier over rows or a path; keyword arguments replace sections."""

    def make(rows: list[dict[str, Any]] | Path, **sections: Any) -> RunConfig:
        path = rows if isinstance(rows, Path) else write_jsonl(tmp_path / "prompts.jsonl", rows)
        raw = {
            "input": {"path": str(path)},
            "output": {"path": str(tmp_path / "out")},
            "tiers": [tier("only")],
            "route": {"policy": "fixed", "tier": "only"},
            "baseline": "only",
            **sections,
        }
        return RunConfig.model_validate(raw)

    return make


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for all tests that need it."""
    import ray

    from jobs.cluster import connect

    connect()
    yield
    ray.shutdown()
