"""Write `demo/reworded.jsonl`: two teams that ask each question twice, the second time reworded.

    python -m demo.make_reworded

The team `lookup` has questions of four families, `counting` of one. The second wording is polite,
in lower case or without its last mark, and comes a little later, as in real traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from demo.evaluate import questions_of
from demo.make_prompts import MAX_TOKENS, Row, command
from demo.tasks import BY_NAME, Example

TEAMS = {"lookup": ("email", "first", "last", "largest"), "counting": ("count",)}
QUESTIONS = {"lookup": 1200, "counting": 300}
_APART = 60
"""Rows within which the second wording follows the first."""


def _polite(text: str) -> str:
    return f"Please {text[0].lower()}{text[1:]}"


def _unmarked(text: str) -> str:
    return text.rstrip(".?!")


_FORMS: tuple[Callable[[str], str], ...] = (_polite, str.lower, _unmarked)


def reworded(rng: Random, text: str) -> str:
    """The same question in other words."""
    forms = [form for form in _FORMS if form(text) != text]
    return rng.choice(forms)(text)


def make_rows(seed: int) -> list[Row]:
    rng = Random(f"reworded {seed}")
    asked: list[tuple[float, Row]] = []
    for team, families in TEAMS.items():
        questions = _questions(rng, families, QUESTIONS[team])
        for place, example in enumerate(questions):
            at = 2 * sum(QUESTIONS.values()) * place / len(questions)
            asked.append((at, _row(team, example, example.prompt)))
            later = at + rng.uniform(1, _APART)
            asked.append((later, _row(team, example, reworded(rng, example.prompt))))
    asked.sort(key=lambda item: item[0])
    return [{"id": f"w{number:04d}", **row} for number, (_, row) in enumerate(asked, 1)]


def _questions(rng: Random, families: tuple[str, ...], count: int) -> list[Example]:
    """Held-out questions of these families, mixed."""
    each = count // len(families)
    found = [q for name in families for q in questions_of(BY_NAME[name], each, rng, True)]
    rng.shuffle(found)
    return found


def _row(team: str, example: Example, prompt: str) -> Row:
    about = {"family": example.family, "label": example.label, "max_tokens": MAX_TOKENS}
    return {"prompt": prompt, "team": team, **about}


if __name__ == "__main__":
    command(__doc__, "reworded.jsonl", make_rows)
