"""Exact match of the demo models on held-out prompts: `python -m demo.evaluate [--n 2000]`.

Answers are generated greedily by transformers from the files on disk, which is what a user gets.
Each model is asked the same questions twice: alone, and under the shared system prompts in turn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from statistics import mean

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizer

from demo.system_prompts import SYSTEM_PROMPTS, chat
from demo.tasks import BY_NAME, FAMILIES, Example, Family

MODELS = ("large", "small", "small-int8")
MAX_NEW_TOKENS = 48
_REPEATS = 1000
"""So many known questions in a row, and a family has no others to ask."""
Scores = dict[str, float]


def held_out_questions(n: int, seed: int) -> list[Example]:
    """About `n` distinct questions that no training sees."""
    return distinct_questions(n, Random(f"evaluate {seed}"), held_out=True)


def distinct_questions(n: int, rng: Random, held_out: bool) -> list[Example]:
    """About `n` from one side of the split, equally many of each family that has so many."""
    size = max(1, n // len(FAMILIES))
    return [q for family in FAMILIES for q in questions_of(family, size, rng, held_out)]


def questions_of(family: Family, size: int, rng: Random, held_out: bool) -> list[Example]:
    """Distinct ones from one side of the split, fewer where a family has no more."""
    questions: dict[str, Example] = {}
    repeats = 0
    while len(questions) < size and repeats < _REPEATS:
        example = family.make_from(rng, held_out)
        repeats = repeats + 1 if example.prompt in questions else 0
        questions[example.prompt] = example
    return list(questions.values())


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizer,
    chats: list[list[dict[str, str]]],
    batch_size: int,
) -> list[str]:
    """Greedy answers in the order of the chats; batches hold chats of similar length."""
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [texts[i] for i in chosen],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        output = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS)
        new = output[:, batch["input_ids"].shape[1] :]
        decoded = tokenizer.batch_decode(new, skip_special_tokens=True)
        for i, text in zip(chosen, decoded, strict=True):
            answers[i] = text
    return answers


def family_scores(questions: list[Example], answers: list[str]) -> Scores:
    """Share of answers equal to the label: per family, per half and over all families."""
    hits: dict[str, list[bool]] = {}
    for question, answer in zip(questions, answers, strict=True):
        hits.setdefault(question.family, []).append(answer == question.label)
    scores = {name: mean(values) for name, values in hits.items()}
    halves = {
        half: mean(score for name, score in scores.items() if BY_NAME[name].difficulty == half)
        for half in ("easy", "hard")
    }
    return {**scores, **halves, "overall": mean(scores.values())}


def evaluate(directory: Path, questions: list[Example], batch_size: int) -> dict[str, Scores]:
    """Scores of one model directory, without and with system prompts."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    systems = [SYSTEM_PROMPTS[i % len(SYSTEM_PROMPTS)] for i in range(len(questions))]
    settings = {
        "plain": [chat(question.prompt) for question in questions],
        "system": [chat(q.prompt, system) for q, system in zip(questions, systems, strict=True)],
    }
    return {
        name: family_scores(questions, generate(model, tokenizer, chats, batch_size))
        for name, chats in settings.items()
    }


def table(results: dict[str, dict[str, Scores]]) -> str:
    """A Markdown table, one row per family and then the halves and the whole."""
    columns = {
        f"{model}, {setting}": scores
        for model, settings in results.items()
        for setting, scores in settings.items()
    }
    lines = ["| family | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in next(iter(columns.values())):
        cells = [f"{100 * scores[row]:.1f}" for scores in columns.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000, help="questions in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--models", type=Path, default=Path(__file__).parent / "models")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    arguments = parser.parse_args()
    questions = held_out_questions(arguments.n, arguments.seed)
    results = {
        name: evaluate(arguments.models / name, questions, arguments.batch_size)
        for name in MODELS
        if (arguments.models / name).exists()
    }
    print(json.dumps(results, indent=2) if arguments.json else table(results))


if __name__ == "__main__":
    main()
