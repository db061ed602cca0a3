"""Write `demo/prompts.jsonl`: a job file with repeats, paraphrases and a dozen broken rows.

Every good row asks a held-out question. Distinct rows are drawn first: single questions, and
groups that ask for the same content through several templates. A third of the file then
repeats some of them under new ids, as real job files do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from demo.system_prompts import chat, draw_system
from demo.tasks import FAMILIES, WORDS, Example, Family, is_held_out

Row = dict[str, Any]
ROWS = 3000
MAX_TOKENS = 48
REPEATED_ONE_IN = 3
PARAPHRASE_GROUPS = 24
"""Groups per family; each has two or more held-out phrasings of one content."""


def ask(prompt: str, system: str | None, as_chat: bool) -> Row:
    """The question columns: a bare prompt, or messages with or without a system prompt."""
    return {"messages": chat(prompt, system)} if system or as_chat else {"prompt": prompt}


def good_row(example: Example, question: Row) -> Row:
    about = {"family": example.family, "difficulty": example.difficulty, "label": example.label}
    return {**question, "max_tokens": MAX_TOKENS, **about}


def paraphrases(rng: Random, family: Family) -> list[Example]:
    """Two or more held-out examples that differ in the template only."""
    while True:
        held_out = [example for example in family.variants(rng) if is_held_out(example.prompt)]
        if len(held_out) > 1:
            return held_out


def distinct_rows(rng: Random, count: int) -> list[Row]:
    """Good rows with distinct prompts: paraphrase groups first, then single questions."""
    groups = [paraphrases(rng, family) for family in FAMILIES for _ in range(PARAPHRASE_GROUPS)]
    rows: dict[str, Row] = {}
    turn = 0
    while len(rows) < count:
        family = FAMILIES[turn % len(FAMILIES)]
        turn += 1
        group = groups.pop() if groups else [family.make_from(rng, held_out=True)]
        system = draw_system(rng) if rng.random() < 0.5 else None
        as_chat = rng.random() < 0.5
        for example in group:
            question = ask(example.prompt, system, as_chat)
            rows.setdefault(example.prompt, good_row(example, question))
    return list(rows.values())[:count]


def broken_rows(rng: Random) -> list[Row]:
    """One row per defect a job file can have."""
    fine = {"prompt": "What is 20 + 22?"}
    endless = "How many words are here? " + " ".join(rng.choices(WORDS, k=6000))
    defects: dict[str, Row] = {
        "prompt is null": {"prompt": None},
        "prompt is empty": {"prompt": ""},
        "prompt is only whitespace": {"prompt": " \n\t "},
        "prompt is longer than the context": {"prompt": endless},
        "prompt is a number": {"prompt": 42},
        "messages is a string": {"messages": "What is 20 + 22?"},
        "messages is empty": {"messages": []},
        "unknown role": {"messages": [{"role": "robot", "content": "What is 20 + 22?"}]},
        "message without content": {"messages": [{"role": "user"}]},
        "lone surrogate": {"messages": [{"role": "user", "content": "What is \ud800 + 22?"}]},
        "max_tokens is negative": {**fine, "max_tokens": -5},
        "temperature is a word": {**fine, "temperature": "hot"},
    }
    about = {"family": "broken", "difficulty": None, "label": None}
    return [
        {"max_tokens": MAX_TOKENS, **question, **about, "broken": defect}
        for defect, question in defects.items()
    ]


def make_rows(seed: int) -> list[Row]:
    """All rows, shuffled and numbered."""
    rng = Random(f"prompts {seed}")
    broken = broken_rows(rng)
    repeats = ROWS // REPEATED_ONE_IN
    distinct = distinct_rows(rng, ROWS - repeats - len(broken))
    rows = [*distinct, *rng.choices(distinct, k=repeats), *broken]
    rng.shuffle(rows)
    return [{"id": f"q{number:04d}", **row} for number, row in enumerate(rows, 1)]


def command(doc: str | None, name: str, make: Callable[[int], list[Row]]) -> None:
    """The command line of a script that writes a file of rows from a seed."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / name)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lines = [json.dumps(row) + "\n" for row in make(arguments.seed)]
    arguments.out.write_text("".join(lines), encoding="ascii")


if __name__ == "__main__":
    command(__doc__, "prompts.jsonl", make_rows)
