"""The end of a run in numbers: `summary.json`."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from jobs.preflight import Plan
from jobs.run_state import RunIdentity, load_replicas
from pipelines.calibrated_config import Calibrated
from pipelines.commit import FOLLOWERS, PENDING
from pipelines.errors import EXIT_BUDGET, EXIT_ERRORS, EXIT_OK, RunFailure
from pipelines.prices import NUSD
from pipelines.route_guard import Standing
from pipelines.settle import count_rows
from pipelines.storage import Directory

_FILE = "summary.json"


@dataclass(frozen=True)
class Summary:
    """One run's totals. Tokens are those that engines computed; money is in US dollars.

    `start_s` is from the start of the run to its first committed block. `bill_usd` holds
    everything: rows and overheads. `saved_usd` is None where no baseline
    price is known, because a saving that was not measured is not claimed.
    """

    run_id: str
    rows: int
    ok: int
    errors: int
    pending: int
    by_source: dict[str, int]
    by_tier: dict[str, dict[str, Any]]
    by_error: dict[str, int]
    escalated: int
    fallbacks: int
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    bill_usd: float
    bill_nusd: int
    overhead_usd: dict[str, float]
    baseline: str | None
    baseline_usd: float | None
    saved_usd: float | None
    wall_s: float
    start_s: float
    rows_per_s: float
    engines: list[dict[str, Any]]
    claimed_keys: int
    bytes_per_claimed_key: float
    cache_groups: list[dict[str, Any]]
    routing: dict[str, Any] | None
    price_version: str
    warnings: list[str]
    output: str
    logs: str

    @property
    def exit_code(self) -> int:
        if self.pending:
            return EXIT_BUDGET
        return EXIT_ERRORS if self.errors else EXIT_OK


def summarize(
    directory: Directory,
    identity: RunIdentity,
    plan: Plan,
    bill: dict[str, int],
    wall_s: float,
    start_s: float,
    logs: str,
    claimed: tuple[int, int],
    cache_groups: list[dict[str, Any]],
    standing: Standing | None,
    warnings: list[str],
) -> Summary:
    """Count what is committed, and write `summary.json`."""
    totals = count_rows(directory)
    pending = plan.num_rows - totals["rows"]
    _check_books(directory, totals, pending, bill)
    baseline_nusd = totals["baseline_nusd"] if plan.prices.baseline else None
    bill_nusd = sum(bill.values())
    keys, held = claimed
    engines = _engines(directory, identity.attempt_id)
    summary = Summary(
        run_id=identity.run_id,
        rows=plan.num_rows,
        ok=totals["ok"],
        errors=totals["errors"],
        pending=pending,
        by_source=totals["by_source"],
        by_tier={t: _tier(counts) for t, counts in totals["by_tier"].items()},
        by_error=totals["by_error"],
        escalated=totals["escalated"],
        fallbacks=totals["fallbacks"],
        prompt_tokens=totals["prompt_tokens"],
        cached_prompt_tokens=totals["cached_prompt_tokens"],
        completion_tokens=totals["completion_tokens"],
        bill_usd=bill_nusd / NUSD,
        bill_nusd=bill_nusd,
        overhead_usd={k: nusd / NUSD for k, nusd in bill.items() if k != "row"},
        baseline=plan.config.baseline,
        baseline_usd=None if baseline_nusd is None else baseline_nusd / NUSD,
        saved_usd=None if baseline_nusd is None else (baseline_nusd - bill_nusd) / NUSD,
        wall_s=round(wall_s, 3),
        start_s=round(start_s, 3),
        rows_per_s=round(totals["rows"] / wall_s, 1) if wall_s else 0.0,
        engines=engines,
        claimed_keys=keys,
        bytes_per_claimed_key=round(held / keys, 1) if keys else 0.0,
        cache_groups=cache_groups,
        routing=_routing(plan, standing),
        price_version=plan.prices.version,
        warnings=[*warnings, *_lost_speculation(engines)],
        output=directory.url,
        logs=logs,
    )
    directory.write(_FILE, json.dumps(asdict(summary), indent=2).encode())
    return summary


def load_summary(directory: Directory) -> Summary | None:
    """The summary of an OUTPUT directory, if it has one."""
    if not directory.exists(_FILE):
        return None
    return Summary(**json.loads(directory.read(_FILE)))


def remove_summary(directory: Directory) -> None:
    directory.remove(_FILE)


def _check_books(
    directory: Directory,
    totals: dict[str, Any],
    pending: int,
    bill: dict[str, int],
) -> None:
    """Raises: RunFailure if a row or a nano-dollar is not where it should be."""
    waiting = (PENDING, *FOLLOWERS.values())
    kept = sum(directory.num_rows(p) for f in waiting for p in directory.parts(f))
    if pending != kept:
        raise RunFailure(
            f"{directory.url}: {pending} rows have no result and {kept} are kept for later; "
            "please report this, and keep the directory"
        )
    if bill.get("row", 0) != totals.get("rows_cost_nusd", 0):
        raise RunFailure(
            f"{directory.url}: rows cost {totals['rows_cost_nusd']} nano-dollars and are billed "
            f"{bill.get('row', 0)}; please report this, and keep the directory"
        )


def _tier(counts: dict[str, int]) -> dict[str, Any]:
    return {
        "rows": counts.get("rows", 0),
        "prompt_tokens": counts.get("prompt_tokens", 0),
        "completion_tokens": counts.get("completion_tokens", 0),
        "cost_usd": counts.get("cost_nusd", 0) / NUSD,
    }


def _routing(plan: Plan, standing: Standing | None) -> dict[str, Any] | None:
    """What was certified of a calibrated route, for which floor, and what checks of it found."""
    route, learned = plan.config.route, plan.route_plan
    if learned is None or not isinstance(route, Calibrated):
        return None
    # A budget keeps no floor.
    floor = route.floor.model_dump() if route.objective == "min_cost" else None
    checks = asdict(standing) if standing else None
    certificate = asdict(learned.certificate)
    return {"model": learned.model, "floor": floor, **certificate, "checks": checks}


def _engines(directory: Directory, attempt_id: str) -> list[dict[str, Any]]:
    return [
        {
            "tier": replica.tier,
            "model": replica.model,
            "alive_s": round(replica.alive_ns / 1e9, 3),
            "load_s": round(replica.load_ns / 1e9, 3),
            "busy_s": round(replica.busy_ns / 1e9, 3),
            "idle_s": round(replica.idle_ns / 1e9, 3),
            "active_s": round(replica.active_ns / 1e9, 3),
            "mean_running": round(replica.running_ns / max(replica.busy_ns, 1), 1),
            "mean_waiting": round(replica.waiting_ns / max(replica.busy_ns, 1), 1),
            "generated_tokens": replica.generated_tokens,
            "preemptions": replica.preemptions,
            "deaths": replica.deaths,
            **replica.sizes,
            **({"plan": replica.plan} if replica.plan else {}),
            **_speculation(replica.speculation),
        }
        for replica in load_replicas(directory).get(attempt_id, [])
    ]


def _speculation(counts: dict[str, Any]) -> dict[str, Any]:
    """An engine's counts with the two figures that people compare; nothing without any."""
    if not counts:
        return {}
    accepted = counts["accepted_tokens"]
    drafted, drafts = counts["draft_tokens"], counts["drafts"]
    return {
        **counts,
        "acceptance_rate": round(accepted / drafted, 3) if drafted else None,
        "acceptance_length": round(1 + accepted / drafts, 3) if drafts else None,
    }


def _lost_speculation(engines: list[dict[str, Any]]) -> list[str]:
    return [
        f"tier {engine['tier']}: speculation was switched off: in pairs of windows with and "
        f"without it, it ran at {engine['speculation_lost']}x; run `nightmill tune` again"
        for engine in engines
        if engine.get("speculation_lost")
    ]
