"""Templates in paths: `{date:FORMAT}`, with strftime's formats, and `{file}`."""

import re
from datetime import date, timedelta

from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.nightly_config import ByDate

_FIELD = re.compile(r"\{(date|file)(?::([^{}]*))?\}")
_EVERY_DAY = [date(2023, 12, 1) + timedelta(days=n) for n in range(800)]
"""Two years, one of them a leap year: a format that tells these apart tells all."""


def is_template(path: str) -> bool:
    return bool(_FIELD.search(path))


def dated(path: str, day: date) -> str:
    """The path of a day."""
    return _FIELD.sub(lambda field: day.strftime(field[2] or "%Y-%m-%d"), path)


def filed(path: str, file: str) -> str:
    """The path for a file, which is named from `input.path` on."""
    return _FIELD.sub(lambda _: file, path)


def fixed_folder(path: str) -> str:
    """The folder that all paths of a template share."""
    field = _FIELD.search(path)
    head = path[: field.start()] if field else path
    return head.rpartition("/")[0] or ("/" if head.startswith("/") else ".")


def check_templates(config: RunConfig) -> None:
    """Raises: UsageProblem if two partitions could share an input or an output."""
    if config.nightly is None:
        raise UsageProblem(
            "nightly: is missing; add it, with partitions: {by: date, start: 2026-01-31} or "
            "{by: file}"
        )
    source, output = config.input.path, config.output.path
    if isinstance(config.nightly.partitions, ByDate):
        for key, path in (("input.path", source), ("output.path", output)):
            _check_fields(key, path, "date")
            if len({dated(path, day) for day in _EVERY_DAY}) < len(_EVERY_DAY):
                raise UsageProblem(
                    f"{key}: {path}: is the same for several days; write {{date:%Y-%m-%d}} in it"
                )
        return
    if is_template(source):
        raise UsageProblem(f"input.path: {source}: by file it is a folder or glob, no template")
    _check_fields("output.path", output, "file")
    if not re.search(r"(^|/)\{file\}$", output):
        raise UsageProblem(
            f"output.path: {output}: must end in /{{file}} where partitions are files"
        )


def _check_fields(key: str, path: str, wanted: str) -> None:
    rest = _FIELD.sub(lambda field: "" if field[1] == wanted else field[0], path)
    if "{" in rest or "}" in rest:
        raise UsageProblem(f"{key}: {path}: only {{{wanted}}} may stand in braces here")
