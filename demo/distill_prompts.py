"""Prompts to distil on: `python -m demo.distill_prompts --out out/distill-prompts.jsonl`.

Distinct questions with their answers, from the side of the split that training may see: what
`demo.evaluate` and `demo/prompts.jsonl` ask stays unknown to the student. One in seven is asked
under a system prompt, as in the training of the demo models.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from demo.evaluate import distinct_questions
from demo.system_prompts import chat, draw_system

ROWS = 100_000
SYSTEM_SHARE = 0.15


def write_prompts(path: Path, count: int) -> None:
    rng = Random("distillation")
    rows = []
    for question in distinct_questions(count, rng, held_out=False):
        system = draw_system(rng) if rng.random() < SYSTEM_SHARE else None
        rows.append({"messages": chat(question.prompt, system), "label": question.label})
    rng.shuffle(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=ROWS)
    arguments = parser.parse_args()
    write_prompts(arguments.out, arguments.n)


if __name__ == "__main__":
    main()
