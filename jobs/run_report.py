"""The report of a run: one page of HTML, made from what its OUTPUT holds."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import islice
from math import ceil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.pages import html_table, page
from jobs.plots import Line, bar_plot, line_plot
from jobs.summary import Summary, load_summary
from jobs.summary_table import summary_lines, usd
from pipelines.errors import UsageProblem
from pipelines.storage import Directory

REPORT = "report.html"
_PARTS_READ = 64
"""Of `rows/`, evenly spaced: distributions are smooth long before all of a large run is read."""
_ERRORS_SHOWN = 20
_PERCENTILES = np.linspace(0, 100, 41)
_COLUMNS = ["tier", "source", "e2e_s", "ttft_s", "completion_tokens", "cost_usd", "route_score"]
_PLOTS = {
    "cost_usd": "US dollars per row",
    "e2e_s": "seconds from admission to the whole answer",
    "ttft_s": "seconds to the first token",
    "completion_tokens": "tokens per answer",
    "route_score": "the route's score",
}


def ended_run(directory: Directory) -> Summary:
    """Raises: UsageProblem if no run has ended in this OUTPUT."""
    summary = load_summary(directory)
    if summary is None:
        raise UsageProblem(
            f"{directory.url}: no run has ended here. To fix: name the OUTPUT of a run; one that "
            "was stopped goes on when its `nightmill run` is given again"
        )
    return summary


def write_report(directory: Directory, summary: Summary) -> None:
    """Put `report.html` into an OUTPUT."""
    directory.write(REPORT, _page(directory, summary).encode())


def _page(directory: Directory, summary: Summary) -> str:
    parts = directory.parts("rows")
    read = parts[:: max(ceil(len(parts) / _PARTS_READ), 1)]
    some = "" if len(read) == len(parts) else f", from {len(read):,} of {len(parts):,} files"
    tables = [directory.read_table(part, _COLUMNS) for part in read]
    config = directory.read("resolved.yaml").decode()
    return page(
        f"Run {summary.run_id}",
        f"{_told(summary)}"
        f"{_section('Where the money went', _money(summary))}"
        f"{_section(f'Rows that were generated, by percentile{some}', _distributions(tables))}"
        f"{_engines(summary)}{_errors(directory)}"
        f"<h2>Configuration</h2><pre>{escape(config)}</pre>",
    )


def _told(summary: Summary) -> str:
    """What the terminal is told."""
    lines = (
        f'<tr class="{line.look}"><td>{escape(line.name)}</td><td>{escape(line.value)}</td>'
        f"<td>{escape(line.detail)}</td></tr>"
        for line in summary_lines(summary)
    )
    return f'<table class="told">{"".join(lines)}</table>'


def _section(heading: str, plots: Iterable[str]) -> str:
    drawn = "".join(plots)
    return f"<h2>{escape(heading)}</h2>{drawn}" if drawn else ""


def _money(summary: Summary) -> Iterator[str]:
    spent = {f"tier {tier}": counts["cost_usd"] for tier, counts in summary.by_tier.items()}
    spent |= {kind: amount for kind, amount in summary.overhead_usd.items() if amount}
    yield bar_plot("the bill", {name: (amount, usd(amount)) for name, amount in spent.items()})
    if summary.baseline_usd is not None:
        whole = {f"all on {summary.baseline}": summary.baseline_usd, "this run": summary.bill_usd}
        yield bar_plot("against the baseline", {name: (a, usd(a)) for name, a in whole.items()})
    rows = {**summary.by_source, "errors": summary.errors, "pending": summary.pending}
    yield bar_plot("rows", {name: (n, f"{n:,}") for name, n in rows.items() if n})


def _distributions(tables: Sequence[pa.Table]) -> Iterator[str]:
    if not tables:
        return
    rows = pa.concat_tables(tables)
    rows = rows.filter(pc.fill_null(pc.equal(rows["source"], "generated"), False))
    tiers = sorted(pc.unique(rows["tier"]).to_pylist())
    by_tier = {tier: rows.filter(pc.equal(rows["tier"], tier)) for tier in tiers}
    for column, title in _PLOTS.items():
        lines = {tier: _percentiles(mine[column]) for tier, mine in by_tier.items()}
        yield line_plot(title, lines, {}, across_what="percentile")


def _percentiles(values: pa.ChunkedArray) -> Line:
    numbers = values.drop_null().cast(pa.float64()).to_numpy()
    if not len(numbers):
        return []
    return list(zip(_PERCENTILES, np.percentile(numbers, _PERCENTILES), strict=True))


def _engines(summary: Summary) -> str:
    shown = {"load_s": "loading, s", "busy_s": "busy, s", "idle_s": "idle, s",
             "mean_running": "rows at once", "generated_tokens": "tokens",
             "preemptions": "preemptions", "deaths": "deaths"}  # fmt: skip
    if not summary.engines:
        return ""
    heading = ["tier", "model", *shown.values()]
    lines = [
        [engine["tier"], engine["model"], *(f"{engine[key]:,}" for key in shown)]
        for engine in summary.engines
    ]
    return f"<h2>Engines of the last start</h2>{html_table([heading, *lines])}"


def _errors(directory: Directory) -> str:
    """The first rows in `errors/`; their prompts stay there."""
    found = (
        [row["row_id"], row["error_kind"], row["error"]]
        for part in directory.parts("errors")
        for row in directory.read_table(part, ["row_id", "error_kind", "error"]).to_pylist()
    )
    first = list(islice(found, _ERRORS_SHOWN))
    if not first:
        return ""
    return f"<h2>The first errors</h2>{html_table([['row', 'kind', 'error'], *first], 'errors')}"
