"""Reading a configuration: one YAML file with overrides, and errors that name key and remedy."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import fsspec
import yaml
from pydantic import ValidationError

from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.section import Section

AnyConfig = TypeVar("AnyConfig", bound=Section)


@overload
def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig: ...


@overload
def load_config(
    path: str | Path, overrides: Mapping[str, Any] | None, kind: type[AnyConfig]
) -> AnyConfig: ...


def load_config(
    path: str | Path, overrides: Mapping[str, Any] | None = None, kind: type[Section] = RunConfig
) -> Section:
    """Read, override and validate a configuration: of a run, or of another kind of job.

    `overrides` maps dotted keys to values; list items are addressed by position or, for
    tiers, by name: `tiers.small.replicas`.

    Raises:
        UsageProblem: naming the file, the key and the remedy.
    """
    try:
        with fsspec.open(str(path), "r", encoding="utf-8") as file:
            text = file.read()
    # A storage driver raises what its library raises.
    except Exception as error:
        raise UsageProblem(f"{path}: cannot be read ({error})") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageProblem(f"{path}: is no valid YAML ({error})") from error
    if not isinstance(raw, dict):
        raise UsageProblem(f"{path}: must be a mapping of keys such as {_examples(kind)}")
    for key, value in (overrides or {}).items():
        _set(raw, key, value, str(path))
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UsageProblem("\n".join(f"{path}: {line}" for line in _lines(error))) from error


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=c`; the value is read as YAML, so numbers and lists come out typed."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageProblem(f"--set {text}: write it as key.path=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageProblem(f"--set {text}: the value is no YAML ({error})") from error


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _examples(kind: type[Section]) -> str:
    return ", ".join(list(kind.model_fields)[:3])


def _set(raw: dict[str, Any], key: str, value: Any, path: str) -> None:
    node: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        node = _child(node, part, key, path)
    if isinstance(node, list):
        raise UsageProblem(f"{path}: --set {key}: a whole list item cannot be replaced")
    node[last] = value


def _child(node: Any, part: str, key: str, path: str) -> Any:
    if isinstance(node, list):
        for i, item in enumerate(node):
            if part == str(i) or (isinstance(item, dict) and item.get("name") == part):
                return item
        raise UsageProblem(f"{path}: --set {key}: no item {part!r} in this list")
    child = node.setdefault(part, {})
    if child is None:
        child = node[part] = {}
    if not isinstance(child, dict | list):
        raise UsageProblem(f"{path}: --set {key}: {part!r} holds a value, not a section")
    return child


def _lines(error: ValidationError) -> Iterable[str]:
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "the configuration"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key; remove it or check its spelling"
        elif item["type"] == "missing":
            message = "is missing; add it"
        yield f"{key}: {message}"
