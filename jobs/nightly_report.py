"""What a nightly found and did, for the terminal."""

from rich.console import Console

from jobs.nightly import Report

_LINES = (
    ("left", "due, not begun"),
    ("waiting", "waiting"),
    ("late", "late: no input"),
    ("changed", "changed since answered"),
    ("removed", "removed"),
    ("warnings", "warning"),
)


def print_report(report: Report, out: Console) -> None:
    def line(name: str, value: str) -> None:
        out.print(f" {name:<24}{value}", highlight=False, soft_wrap=True, markup=False)

    if report.busy:
        line("nothing done", report.busy)
        return
    for answered in report.runs:
        done = {0: "answered", 1: "failed", 3: "some rows in errors/", 4: "stopped at the budget"}
        line(answered.partition, f"{done[answered.exit_code]}  {answered.output}")
        if answered.trouble:
            line("", answered.trouble)
    for name, shown in _LINES:
        would = "would be " if report.dry_run and name == "removed" else ""
        for entry in getattr(report, name):
            line(would + shown, entry)
    if not (report.runs or report.due or report.late or report.changed):
        line("nothing due", "")
