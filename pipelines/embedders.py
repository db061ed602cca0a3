"""Where an embedding model lies, and which one it is, told without loading it."""

import re
from importlib.util import find_spec
from pathlib import Path

from pipelines.embedding_model import EmbeddingModel
from pipelines.errors import UsageProblem
from pipelines.keys import canonical_json, digest, folder_digests

_REVISION_HEX = 12
_MARK = "modules.json"
"""Every folder that sentence-transformers saves a model to has one."""


def embedder_source(config: EmbeddingModel, key: str = "response_cache.semantic") -> str:
    """What to load: a local folder, or the name of a hub model.

    Args:
        key: where the configuration names it.

    Raises:
        UsageProblem: there is no such folder or package, or a hub model without its commit.
    """
    for folder in _folders(config.embedder):
        if (folder / _MARK).is_file():
            return str(folder)
    if config.embedder.count("/") == 1 and not Path(config.embedder).parent.is_dir():
        if re.fullmatch(r"[0-9a-f]{40}", config.revision or ""):
            return config.embedder
        raise UsageProblem(
            f"{key}.revision: pin {config.embedder} to a commit of the hub, 40 "
            "hex digits; vectors of two models cannot be compared"
        )
    raise UsageProblem(
        f"{key}.embedder: {config.embedder}: no folder or installed package "
        f"with a sentence-transformers model ({_MARK}); correct the path, or install the package"
    )


def embedder_revision(config: EmbeddingModel) -> str:
    """A name that changes with the model: 12 hexadecimal digits."""
    source = embedder_source(config)
    # A folder counts by what it holds, wherever it lies.
    identity = list(folder_digests(source).values()) or [source, str(config.revision)]
    return digest(canonical_json(identity)).hex()[:_REVISION_HEX]


def _folders(name: str) -> list[Path]:
    """The folder of this name, and those inside the package of this name."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return [Path(name)]
    spec = find_spec(name)
    inside = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    return [Path(name), *inside, *(child for root in inside for child in sorted(root.iterdir()))]
