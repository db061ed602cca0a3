"""The rule by which a similar answer becomes a hit, as one name."""

from pathlib import Path

import pipelines.gates
from pipelines.config import Semantic
from pipelines.embedders import embedder_revision
from pipelines.keys import canonical_json, digest, folder_digests

_NAME_HEX = 12


def rule_name(semantic: Semantic) -> str:
    """Changes with whatever decides which candidates are hits: what audits have shown of one
    rule does not hold for another. The gates count by their source.
    """
    gates = Path(pipelines.gates.__file__).parent
    verifier = folder_digests(semantic.verifier) or semantic.verifier
    parts = [
        embedder_revision(semantic),
        list(folder_digests(str(gates)).values()),
        verifier if isinstance(verifier, str | None) else list(verifier.values()),
        semantic.verifier_threshold,
        semantic.agreement,
        semantic.answer_similarity,
    ]
    return digest(canonical_json(parts)).hex()[:_NAME_HEX]
