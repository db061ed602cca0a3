"""Prompts with what two models made of them, and their embeddings, computed once."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.cache_quality import embed, embedder_folder
from pipelines.route_features import features

FOLDER = Path("out/bench-router")
WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
Vectors = np.ndarray[Any, np.dtype[np.float32]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Pair:
    """Two models' answers to the same prompts.

    Attributes:
        rows: of shape (prompts, dimensions + features): what a learner sees.
        weak, strong: 1.0 where that model is right, else 0.0.
    """

    prompts: list[str]
    rows: Vectors
    weak: Floats
    strong: Floats

    @property
    def gains(self) -> Floats:
        return self.strong - self.weak


def embeddings(texts: Sequence[str]) -> Vectors:
    """Unit vectors of all-MiniLM-L6-v2, kept in out/ for the next time."""
    seen = blake2b(json.dumps([embedder_folder().rsplit("/", 2)[1:], *texts]).encode())
    file = FOLDER / f"{seen.hexdigest()[:24]}.npy"
    if file.exists():
        return np.load(file)
    from sentence_transformers import SentenceTransformer

    click.echo(f"embedding {len(texts):,} prompts", err=True)
    vectors = embed(SentenceTransformer(embedder_folder(), device="cpu"), texts)
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.save(file, vectors)
    return vectors


def read_pair(files: Sequence[Path]) -> Pair:
    rows = [row for path in files for row in _rows(path)]
    if not rows:
        raise click.ClickException("--data has no mmlu_responses/*.csv and gsm8k_responses.csv")
    prompts = [row["prompt"] for row in rows]
    weak, strong = (
        np.array([row[name] == "True" for row in rows], float) for name in (WEAK, STRONG)
    )
    return Pair(prompts, np.hstack([embeddings(prompts), features(prompts)]), weak, strong)


def read_pairs(data: Path) -> dict[str, Pair]:
    """MMLU and GSM8K of the RouteLLM repository, all rows."""
    mmlu = sorted((data / "mmlu_responses").glob("*.csv"))
    return {"mmlu": read_pair(mmlu), "gsm8k": read_pair([data / "gsm8k_responses.csv"])}


@dataclass(frozen=True)
class Intents:
    """clinc150: embeddings of questions with their intents, and of questions outside all."""

    train: Vectors
    train_intents: np.ndarray[Any, Any]
    test: Vectors
    test_intents: np.ndarray[Any, Any]
    outside: Vectors


def read_intents(folder: Path) -> Intents:
    data = json.loads((folder / "data_full.json").read_text())
    parts = {name: data[name] for name in ("train", "test", "oos_test")}
    vectors = embeddings([text for part in parts.values() for text, _ in part])
    first, second = len(parts["train"]), len(parts["train"]) + len(parts["test"])
    train, test = (np.array([intent for _, intent in parts[name]]) for name in ("train", "test"))
    return Intents(vectors[:first], train, vectors[first:second], test, vectors[second:])


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
