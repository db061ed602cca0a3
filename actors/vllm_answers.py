"""What vLLM gives back, as an answer: text, choices, calls, thoughts, probabilities, vectors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.engine import Answer
from actors.vllm_requests import Ask, build_parser
from pipelines.errors import RowProblem

if TYPE_CHECKING:
    from vllm import CompletionOutput
    from vllm.parser import Parser

_FINISHED = ("stop", "length")
_NO_LOGPROB = -9999.0
"""What OpenAI and vLLM say for a token of no probability: JSON has no minus infinity."""


@dataclass(frozen=True)
class Message:
    """One choice, taken apart.

    Attributes:
        tool_calls: in OpenAI's format.
    """

    content: str | None
    reasoning: str | None = None
    tool_calls: Sequence[dict[str, Any]] = ()


class Reader:
    """Turns what a tier's engine gives back into answers.

    Args:
        model: vLLM's configuration of it.
    """

    def __init__(
        self, task: str, tokenizer: Any, model: Any, parser: "type[Parser] | None"
    ) -> None:
        self._task, self._tokenizer, self._model, self._parser = task, tokenizer, model, parser

    def read(self, ask: Ask, outputs: Any) -> Answer:
        """The answer, or what stood in its way; usage and times are left to others."""
        if ask.generates:
            return self._read_completions(ask, outputs)
        labels = getattr(self._model.hf_config, "id2label", {})
        return read_pooled(self._task, outputs.data, labels)

    def _read_completions(self, ask: Ask, outputs: "Sequence[CompletionOutput]") -> Answer:
        failed = [o.finish_reason for o in outputs if o.finish_reason not in _FINISHED]
        if failed:
            return Answer(problem=_failure(ask, failed[0]))
        try:
            messages = [self.message(ask, o.text, o.token_ids) for o in outputs]
        # A parser is code for one model's habits: it may raise anything over another text.
        except Exception as error:
            problem = RowProblem("parser", f"the answer could not be parsed ({error!r})")
            return Answer(response=outputs[0].text, problem=problem)
        choices = [
            _choice(i, message, output, self.logprobs(ask, output))
            for i, (message, output) in enumerate(zip(messages, outputs, strict=True))
        ]
        # The first is the row's response; several stand beside it in full.
        return Answer(
            response=messages[0].content,
            finish_reason=choices[0]["finish_reason"],
            reasoning=messages[0].reasoning,
            tool_calls=_json(messages[0].tool_calls),
            choices=_json(choices) if len(choices) > 1 else None,
            token_logprobs=_json(choices[0]["logprobs"]),
        )

    def parses(self, ask: Ask) -> bool:
        """Whether an answer's text has more in it than its content."""
        return ask.chat is not None and self._parser is not None

    def message(self, ask: Ask, text: str, token_ids: Sequence[int]) -> Message:
        """One completion's text, taken apart by the tier's parsers."""
        if ask.chat is None or self._parser is None:
            return Message(text)
        parser = build_parser(self._parser, self._tokenizer, self._model, ask.chat)
        parser.set_prompt_token_ids(ask.tokens)
        reasoning, content, calls = parser.parse(
            text, ask.chat, enable_auto_tools=True, model_output_token_ids=token_ids
        )
        return Message(content, reasoning, [_call(call) for call in calls or ()])

    def logprobs(self, ask: Ask, output: "CompletionOutput") -> dict[str, Any] | None:
        """OpenAI's chat format: the chosen token of each place, and the likeliest ones."""
        if output.logprobs is None:
            return None
        content = []
        for chosen, found in zip(output.token_ids, output.logprobs, strict=True):
            # The chosen one is always found, also where it is not among those asked for.
            ranked = sorted((p.rank, t) for t, p in found.items() if p.rank <= ask.params.logprobs)
            likeliest = [self._token(token, found[token]) for _, token in ranked]
            content.append({**self._token(chosen, found[chosen]), "top_logprobs": likeliest})
        return {"content": content}

    def _token(self, token: int, probability: Any) -> dict[str, Any]:
        text = probability.decoded_token
        if text is None:
            text = self._tokenizer.decode([token])
        return {
            "token": text,
            "logprob": max(probability.logprob, _NO_LOGPROB),
            "bytes": list(text.encode()),
        }


def read_pooled(task: str, data: Any, labels: dict[int, str]) -> Answer:
    """The answer that a pooled vector makes: itself, or what its numbers mean to the task."""
    values = data.float().reshape(-1)
    if task == "embed":
        return Answer(finish_reason="stop", embedding=values.tolist())
    if task == "score":
        return Answer(finish_reason="stop", scores=json.dumps({"score": values[0].item()}))
    scores = {labels.get(i, str(i)): value for i, value in enumerate(values.tolist())}
    best = max(scores, key=lambda label: scores[label])
    return Answer(response=best, finish_reason="stop", scores=json.dumps(scores))


def _failure(ask: Ask, reason: str | None) -> RowProblem:
    # vLLM parses a grammar when it takes the request, and compiles it when it runs it.
    if ask.params.structured_outputs and reason == "error":
        return RowProblem("invalid_request", "the grammar of the structured output is unusable")
    return RowProblem("engine", f"generation ended with {reason}")


def _choice(
    index: int, message: Message, output: "CompletionOutput", logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    """One of OpenAI's choices."""
    told: dict[str, Any] = {"role": "assistant", "content": message.content}
    if message.reasoning is not None:
        told["reasoning_content"] = message.reasoning
    if message.tool_calls:
        told["tool_calls"] = message.tool_calls
    called = message.tool_calls and output.finish_reason == "stop"
    return {
        "index": index,
        "message": told,
        "finish_reason": "tool_calls" if called else output.finish_reason,
        "logprobs": logprobs,
    }


def _call(call: Any) -> dict[str, Any]:
    from vllm.renderers.chat_utils import make_tool_call_id

    return {
        "id": call.id or make_tool_call_id(),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _json(value: Any) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None
