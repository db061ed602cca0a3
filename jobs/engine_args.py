"""The names of vLLM's engine arguments, read from its source: importing vLLM takes seconds."""

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

_CLASSES = ("EngineArgs", "AsyncEngineArgs")


@lru_cache(maxsize=1)
def engine_arg_names() -> frozenset[str]:
    """What `engine_args` may hold; empty where vLLM is not installed."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    classes = [
        node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name in _CLASSES
    ]
    fields = [node for found in classes for node in found.body if isinstance(node, ast.AnnAssign)]
    return frozenset(node.target.id for node in fields if isinstance(node.target, ast.Name))
