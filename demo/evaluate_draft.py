"""Speculative decoding of `large` with the draft model in vLLM: `python -m demo.evaluate_draft`.

Held-out questions, greedy, alone and under each system prompt in turn. vLLM's acceptance length
also counts drafted tokens after the end of an answer, which are thrown away, so the tokens of the
answers that a draft and its verification brought are given beside it.
"""

from __future__ import annotations

import argparse

from vllm import LLM, SamplingParams
from vllm.v1.metrics.reader import Counter

from demo.evaluate import MAX_NEW_TOKENS, held_out_questions
from demo.system_prompts import SYSTEM_PROMPTS, chat
from demo.train import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=560, help="questions in all")
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument("--draft-model", default=str(MODELS / "draft"))
    arguments = parser.parse_args()
    llm = LLM(
        str(MODELS / "large"),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=2048,
        disable_log_stats=False,
        speculative_config={
            "method": "draft_model",
            "model": arguments.draft_model,
            "num_speculative_tokens": arguments.num_speculative_tokens,
        },
    )
    questions = held_out_questions(arguments.n, seed=0)
    systems = [None, *SYSTEM_PROMPTS]
    chats = [chat(q.prompt, systems[i % len(systems)]) for i, q in enumerate(questions)]
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS)
    answers = [request.outputs[0] for request in llm.chat(chats, sampling, use_tqdm=False)]
    counts = {m.name: m.value for m in llm.get_metrics() if isinstance(m, Counter)}
    drafts = counts["vllm:spec_decode_num_drafts"]
    accepted = counts["vllm:spec_decode_num_accepted_tokens"]
    # The first token of every answer comes from the prefill, without a draft.
    decoded = sum(len(answer.token_ids) - 1 for answer in answers)
    right = sum(a.text == q.label for a, q in zip(answers, questions, strict=True))
    print(f"exact match {right / len(questions):.3f}, {drafts} drafts")
    print(f"acceptance_rate {accepted / counts['vllm:spec_decode_num_draft_tokens']:.3f}")
    print(f"acceptance_length {1 + accepted / drafts:.3f}")
    print(f"answer tokens per draft {decoded / drafts:.3f}")


if __name__ == "__main__":
    main()
