"""What a sample's answers tell, without the engines that gave them."""

from typing import Any

import numpy as np
import pytest
from conftest import MakeConfig, tier

from actors.route_fit import Promise, certified, fit_doubt
from jobs import route_evidence
from jobs.route_evidence import Evidence
from jobs.route_sampling import Answered, Sampled
from pipelines.certify import Floor
from pipelines.requests import Request

ROWS = 2000


def said(text: str, usd: float, sure: float = 0.0, **fields: Any) -> dict[str, Any]:
    sureness = f'{{"content": [{{"token": "t", "logprob": {sure}}}]}}'
    return {
        "status": "ok", "error_kind": None, "cost_usd": usd,
        "response": text, "finish_reason": "stop", "token_logprobs": sureness, **fields,
    }  # fmt: skip


def evidence_of(
    rows: list[Answered], make_config: MakeConfig, patch: pytest.MonkeyPatch
) -> Evidence:
    """Of rows that were answered so."""
    route = {
        "policy": "certified_cascade", "cheap": "cheap", "strong": "strong", "measure": "mean",
        "quality": {"by": "labels", "column": "right"},
    }  # fmt: skip
    config = make_config([], tiers=[tier("cheap"), tier("strong")], route=route, baseline="strong")
    patch.setattr(route_evidence, "answer", lambda *_: (rows, 0))
    found = Evidence(config, config.route, False)  # type: ignore[arg-type]
    found.add([row.sampled for row in rows])
    return found


def row(i: int, held: bool, cheap: dict[str, Any], strong: dict[str, Any]) -> Answered:
    asked = Request([{"role": "user", "content": str(i)}], {})
    return Answered(Sampled(str(i), asked, "yes", held), cheap, strong)


def test_an_outage_of_the_strong_tier_does_not_speak_for_the_cheap_one(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = {**said("", 0.0), "status": "error", "response": None, "error_kind": "unavailable"}
    wrong = {**out, "error_kind": "context_length"}
    rows = [
        row(0, False, said("no", 1.0), out),
        row(1, False, said("no", 1.0), wrong),
        row(2, False, said("no", 1.0), said("yes", 2.0)),
        row(3, False, out, said("yes", 2.0)),
    ]
    found = evidence_of(rows, make_config, monkeypatch)
    assert len(found) == 2
    # What a tier cannot answer is its own fault.
    assert found.judged().gains.tolist() == [0, 1]


def test_the_proof_is_by_the_half_that_nothing_was_fitted_to(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the fit lose nothing, those of the test a tenth."""
    rows = [
        row(i, i % 2 == 1, said("no" if i % 20 == 1 else "yes", 1.0, -i / ROWS), said("yes", 10.0))
        for i in range(ROWS)
    ]
    found = evidence_of(rows, make_config, monkeypatch)
    known, held = found.judged().halves()
    assert (known.gains.mean(), held.gains.mean()) == (0, 0.1)
    promise = Promise(Floor(1.0), found.costs(held=True), 10**6)
    assert certified(fit_doubt("mean", known), held, promise).certificate.threshold is None
    assert certified(fit_doubt("mean", known), known, promise).certificate.threshold is not None


def test_a_difference_is_worth_what_the_labels_say(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of held-out rows that stay cheap; one that was lost is counted in."""
    rows = [
        *(row(i, True, said("yes", 1.0), said("yes", 2.0)) for i in range(5)),
        *(row(i, True, said("no", 1.0), said("yes", 2.0)) for i in range(5, 7)),
        *(row(i, True, said("no", 1.0), said("maybe", 2.0)) for i in range(7, 11)),
        row(11, True, said("yes", 1.0), said("no", 2.0)),
        row(12, False, said("no", 1.0), said("yes", 2.0)),
        row(13, True, said("no", 1.0), said("yes", 2.0)),
    ]
    found = evidence_of(rows, make_config, monkeypatch)
    kept = np.array([True] * 12 + [False])
    assert found.difference(kept) == pytest.approx((1 + 2 - 1) / (1 + 2 + 4 + 1))


def test_what_escalates_is_counted_at_what_it_costs(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that the cheap tier fails are the dear ones, and pay its attempt too."""
    rows = []
    for i in range(ROWS):
        is_hard = i % 4 >= 2
        cheap = said("no" if is_hard else "yes", 1.0, -2.0 if is_hard else -0.1)
        rows.append(row(i, i % 2 == 1, cheap, said("yes", 50.0 if is_hard else 4.0)))
    found = evidence_of(rows, make_config, monkeypatch)
    known, held = found.judged().halves()
    promise = Promise(Floor(1.0), found.costs(held=True), 10**6)
    certificate = certified(fit_doubt("mean", known), held, promise).certificate
    assert certificate.share_cheap == 0.5
    # Kept at 1, sent at 1 + 50, of 4 and 50; by the means it would be 46 %.
    assert certificate.saving == pytest.approx(1 - (1 + 51) / 54)
