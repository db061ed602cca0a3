"""The report of a distillation: a page, a table for the terminal, and the model's card."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.pages import html_table, page
from jobs.plots import Line, line_plot
from pipelines.config_file import dump_config
from pipelines.distill_config import DistillConfig
from pipelines.publish import BF16, PTQ, STUDENT, Measured, kl_closed

if TYPE_CHECKING:
    from jobs.distill import Outcome

_NAMES = {
    BF16: "BF16 student, not quantized",
    "rtn": "PTQ, round to nearest, largest weight",
    PTQ: "PTQ, MSE scales",
    "gptq": "PTQ, GPTQ",
    "cross_entropy": "QAT, cross entropy",
    STUDENT: "QAD, this student",
}
_HEADINGS = ("variant", "KL to teacher", "top-1 agreement", "exact match")


def format_name(config: DistillConfig) -> str:
    """The format as the field writes it."""
    group = config.format.resolved_group_size
    names = {"int4": f"INT4 weights, groups of {group}", "int8": "INT8 weights and activations"}
    return names.get(config.format.kind, "NVFP4")


def report_page(outcome: "Outcome") -> str:
    """One self-contained HTML page."""
    config = outcome.config
    conditions = "".join(
        f'<li class="{"good" if c.holds else "bad"}">{"holds" if c.holds else "fails"}: '
        f"{escape(c.says)}</li>"
        for c in outcome.verdict.conditions
    )
    verdict = "published" if outcome.verdict.publish else "not published"
    return page(
        f"Distillation: {verdict}",
        f"<p>{escape(_summary(outcome))}</p><ul>{conditions}</ul>"
        f"<h2>On the held-out test rows</h2>{html_table(_cells(outcome.measured))}"
        f"<h2>While training</h2>{''.join(_plots(outcome))}"
        f"<h2>Rows</h2>{html_table(_row_cells(outcome))}"
        f"<h2>Configuration</h2><pre>{escape(dump_config(config))}</pre>",
    )


def print_outcome(outcome: "Outcome", console: Console) -> None:
    """The same as a table, with the reasons."""
    heading, *rows = _cells(outcome.measured)
    table = Table(*heading, title="on the held-out test rows", title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for condition in outcome.verdict.conditions:
        mark = "[green]holds[/green]" if condition.holds else "[red]fails[/red]"
        console.print(f"{mark}: {condition.says}", highlight=False)
    place = outcome.model or "nothing was exported"
    console.print(f"{place}; report in {outcome.config.output}/report.html", highlight=False)


def model_card(outcome: "Outcome") -> str:
    """README.md of the exported folder: what it is and every figure."""
    heading, *rows = _cells(outcome.measured)
    lines = [" | ".join(cells) for cells in (heading, ["---"] * len(heading), *rows)]
    conditions = "\n".join(f"- {condition.says}" for condition in outcome.verdict.conditions)
    counts = "\n".join(f"- {' '.join(cells)}" for cells in _row_cells(outcome)[1:])
    table = "\n".join(f"| {line} |" for line in lines)
    return (
        f"# {format_name(outcome.config)}, made by quantization-aware distillation\n\n"
        f"{_summary(outcome)}\n\n"
        "Load it with vLLM as any model: the format is compressed-tensors.\n\n"
        f"On held-out prompts, none of which was trained on or chosen by:\n\n{table}\n\n"
        f"{conditions}\n\nRows:\n\n{counts}\n\n"
        f"Configuration:\n\n```yaml\n{dump_config(_without_places(outcome.config))}```\n"
    )


def _without_places(config: DistillConfig) -> DistillConfig:
    """What is published names models and data, and not the folders of who made it."""
    named = {"teacher": _folder(config.teacher), "output": _folder(config.output)}
    if config.student is not None:
        named["student"] = _folder(config.student)
    data = [part.model_copy(update={"path": _folder(part.path)}) for part in config.data]
    return config.model_copy(update={**named, "data": data})


def _summary(outcome: "Outcome") -> str:
    config = outcome.config
    student = "a copy of it" if config.student is None else _folder(config.student)
    said = [
        f"Teacher {_folder(config.teacher)}, student {student}, {format_name(config)}.",
        f"Training removed {100 * kl_closed(outcome.measured):.0f} % of the KL that "
        "post-training quantization with MSE scales leaves.",
    ]
    if outcome.size_bytes is not None:
        share = outcome.size_bytes / outcome.source_bytes
        said.append(f"Weights {outcome.size_bytes / 1e6:.2f} MB, {share:.2f} of the original's.")
    return " ".join(said)


def _folder(path: str) -> str:
    """The name of a folder or file: where it lies is nobody else's business."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def _cells(measured: Mapping[str, Measured]) -> list[list[str]]:
    rows = [list(_HEADINGS)]
    for name, found in measured.items():
        score = "" if found.score is None else f"{100 * found.score:.1f} %"
        rows.append([_NAMES[name], f"{found.kl:.5f}", f"{100 * found.top1:.1f} %", score])
    return rows


def _row_cells(outcome: "Outcome") -> list[list[str]]:
    kept = [[part, f"{count:,}"] for part, count in outcome.rows.items()]
    left_out = [[f"left out: {why}", f"{count:,}"] for why, count in outcome.skipped.items()]
    return [["rows", ""], *kept, *left_out]


def _plots(outcome: "Outcome") -> list[str]:
    whole, ptq = outcome.measured[BF16], outcome.measured[PTQ]
    levels = {"BF16 (test rows)": whole.kl, "PTQ, MSE scales (test rows)": ptq.kl}
    scores = {} if whole.score is None else {"BF16 (test rows)": 100 * whole.score}
    objective = {STUDENT: "QAD", "cross_entropy": "QAT, cross entropy"}

    def lines(key: str, scale: float = 1.0) -> dict[str, Line]:
        return {objective[name]: _line(curve, key, scale) for name, curve in outcome.curves.items()}

    return [
        line_plot("training loss, nats per answer token", lines("loss"), {}),
        line_plot(
            "held-out KL to the teacher, nats per answer token",
            lines("kl"),
            {name: kl for name, kl in levels.items() if kl > 0},
            logarithmic=all(y > 0 for line in lines("kl").values() for _, y in line),
        ),
        line_plot("held-out top-1 agreement, %", lines("top1", 100), {"PTQ": 100 * ptq.top1}),
        line_plot("held-out exact match, %", lines("score", 100), scores),
    ]


def _line(curve: Sequence[Mapping[str, Any]], key: str, scale: float) -> Line:
    return [(p["step"], scale * p[key]) for p in curve if p[key] is not None]
