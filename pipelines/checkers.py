"""Checks of an answer that need no model: a pattern, a JSON schema, a function of the user's."""

import json
import re
from collections.abc import Callable
from importlib import import_module

from pipelines.accept_config import ByJsonSchema, ByPython, ByRegex
from pipelines.code_fence import unfenced
from pipelines.errors import UsageProblem

Checker = Callable[[str, str], bool]
"""Of (prompt, response): whether the response may be taken."""


def build_checker(accept: ByRegex | ByJsonSchema | ByPython, key: str) -> Checker:
    """Raises: UsageProblem if there can be no such check, naming the key and what is wrong."""
    match accept:
        case ByRegex():
            return _regex(accept.pattern, f"{key}.pattern")
        case ByJsonSchema():
            return _json_schema(accept.json_schema, f"{key}.json_schema")
        case ByPython():
            return _python(accept.entry_point, f"{key}.entry_point")


def _regex(pattern: str, key: str) -> Checker:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageProblem(f"{key}: {pattern!r}: {error}; correct the expression") from error
    return lambda _prompt, response: compiled.search(response) is not None


def _json_schema(schema: dict[str, object], key: str) -> Checker:
    # Importing it takes a quarter of a second, and few routes need it.
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise UsageProblem(f"{key}: is no JSON Schema: {error.message}") from error
    validator = kind(schema)

    def fits(_prompt: str, response: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(unfenced(response))))
        except (ValueError, RecursionError):
            return False

    return fits


def _python(entry_point: str, key: str) -> Checker:
    module, _, name = entry_point.partition(":")
    try:
        function = getattr(import_module(module), name)
    # Whatever a user's module raises while it is imported is a mistake in the configuration.
    except Exception as error:
        raise UsageProblem(
            f"{key}: {entry_point}: cannot be imported ({error}); every node needs the module on "
            "its path"
        ) from error
    if not callable(function):
        raise UsageProblem(f"{key}: {entry_point}: is no function")

    def passes(prompt: str, response: str) -> bool:
        try:
            return bool(function(prompt, response))
        # An answer that a check cannot read is not accepted; the row goes on to the next tier.
        except Exception:
            return False

    return passes
