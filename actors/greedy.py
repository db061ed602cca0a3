"""Greedy answers of a causal language model, in batches of similar length."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

_BATCH_ROWS = 64


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The ids that end an answer, by the model's own generation config."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, max_length: int
) -> list[list[int]]:
    """The tokens that follow each prompt, with the one that ends the answer if it came.

    Args:
        max_length: prompt and answer together, in tokens.
    """
    ends = end_tokens(model)
    answers: list[list[int]] = [[]] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), _BATCH_ROWS):
        rows = order[start : start + _BATCH_ROWS]
        longest = len(prompts[rows[-1]])
        limit = min(max_new_tokens, max_length - longest)
        new = _generate(model, [prompts[row] for row in rows], ends, limit)
        for row, answer in zip(rows, new, strict=True):
            answers[row] = _until_end(answer, ends)
    return answers


def _generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], ends: list[int], limit: int
) -> list[list[int]]:
    longest = max(map(len, prompts))
    padding = ends[0] if ends else 0
    ids = torch.tensor([[padding] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    # Not the model's own: its temperature and the like are for sampling.
    config = GenerationConfig(
        do_sample=False, max_new_tokens=limit, eos_token_id=ends or None, pad_token_id=padding
    )
    made = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=config,
    )
    tokens: list[list[int]] = made[:, longest:].tolist()
    return tokens


def _until_end(answer: list[int], ends: Sequence[int]) -> list[int]:
    for i, token in enumerate(answer):
        if token in ends:
            return answer[: i + 1]
    return answer
