"""The page that a run leaves, and `nightmill report`, which makes it again."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import MakeConfig, tier

from jobs.batch import run
from jobs.cli import main
from jobs.run_report import REPORT


class Page(HTMLParser):
    """Its text, its plots by title, and whatever it would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.plots: list[str] = []
        self.text: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "svg":
            self.plots.append(found["aria-label"] or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.mark.usefixtures("ray_here")
def test_a_run_leaves_a_page_that_needs_nothing_beside_itself(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    rows = [{"id": str(i), "prompt": f"secret {i % 20}", "hard": str(i % 2)} for i in range(60)]
    route = {
        "policy": "rules",
        "rules": [{"when": {"columns": {"hard": ["1"]}}, "tier": "strong"}],
        "otherwise": "cheap",
    }
    config = make_config(
        [*rows, {"id": "<b>bad</b>", "prompt": "", "hard": "0"}],
        tiers=[tier("cheap"), tier("strong")], route=route, baseline="strong",
    )  # fmt: skip
    summary, out = run(config), tmp_path / "out"
    page = Page(out / REPORT)
    told = " ".join(page.text)
    assert f"Run {summary.run_id}" in told
    assert f"{summary.bill_usd:.6f}" in told
    assert {"the bill", "against the baseline", "rows", "US dollars per row"} <= set(page.plots)
    assert "<b>bad</b>" in page.text, "what users wrote is text and no markup"
    assert "policy: rules" in told
    assert "secret" not in told
    assert page.fetched == []

    (out / REPORT).unlink()
    done = report(out)
    assert done.exit_code == 0
    assert summary.run_id in done.output
    assert str(out) in done.output.replace("\n", "").replace(" ", ""), "no path is cut off"
    assert Page(out / REPORT).text == page.text
    assert json.loads(report(out, "--json").output)["rows"] == 61


@pytest.mark.usefixtures("ray_here")
def test_a_run_that_has_not_ended_has_no_report(tmp_path: Path, make_config: MakeConfig) -> None:
    run(make_config([{"id": "1", "prompt": "x"}]))
    (tmp_path / "out/summary.json").unlink()
    unfinished = report(tmp_path / "out")
    assert unfinished.exit_code == 2
    assert "no run has ended here" in unfinished.output
    nowhere = report(tmp_path / "nowhere")
    assert nowhere.exit_code == 2
    assert "must be the folder that a run has written to" in nowhere.output


@pytest.mark.usefixtures("ray_here")
def test_the_parts_of_the_bill_add_up_to_it_after_a_retry(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """What the first tier did for a row that failed in the second is paid in its first attempt,
    and again when it is tried again."""
    never = [{"by": "regex", "pattern": "^never$"}]
    route = {
        "policy": "cascade",
        "steps": [{"tier": "cheap", "accept": never}],
        "otherwise": "strong",
    }
    rows = [{"id": str(i), "prompt": f"p {i}"} for i in range(6)]
    tiers = [tier("cheap"), tier("strong", fail_every=1)]
    config = make_config(rows, tiers=tiers, route=route, baseline="strong")
    for retry in (False, True):
        summary = run(config, retry=retry)
        assert summary.errors == 6
        parts = [t["cost_usd"] for t in summary.by_tier.values()] + [*summary.overhead_usd.values()]
        assert 0 < sum(parts) == pytest.approx(summary.bill_usd, abs=1e-12)
    assert summary.overhead_usd["retry"] == pytest.approx(summary.bill_usd / 2)
    page = Page(tmp_path / "out" / REPORT)
    assert {"the bill", "rows"} <= set(page.plots)
    assert "US dollars per row" not in page.plots


@pytest.mark.usefixtures("ray_here")
def test_a_run_that_ended_without_its_page_gets_it(tmp_path: Path, make_config: MakeConfig) -> None:
    config, path = make_config([{"id": "1", "prompt": "x"}]), tmp_path / "out" / REPORT
    summary = run(config)
    path.unlink()
    assert run(config) == summary
    assert Page(path).plots


@pytest.mark.usefixtures("ray_here")
def test_a_run_without_any_answer_has_a_page(tmp_path: Path, make_config: MakeConfig) -> None:
    run(make_config([{"id": "1", "prompt": ""}]))
    page = Page(tmp_path / "out" / REPORT)
    assert page.plots == ["rows"]
    assert "Rows that were generated" not in " ".join(page.text)
