"""What a vLLM tier refuses without its model: a run of such rows loads none."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import RowProblem
from pipelines.requests import EMBEDDING_FIELDS, Request, text_of
from pipelines.tier import VLLM

_SUSPICIOUS_BYTES_PER_TOKEN = 8
"""Text this long for its context is worth tokenizing before a model is loaded for it."""
_POOLING_FIELDS = {
    "embed": {"lora", *EMBEDDING_FIELDS},
    "classify": {"lora"},
    "score": {"lora"},
}


def refusal(config: VLLM, request: Request, defaults: Mapping[str, Any]) -> RowProblem | None:
    """What the tier cannot do for a row, as far as it can be told without the model."""
    fields = {**defaults, **request.sampling}
    if config.task != "generate":
        return _pooling_refusal(config, request) or _unknown_adapter(config, fields)
    for name in EMBEDDING_FIELDS:
        if name in fields:
            return RowProblem("unsupported", f"{name}: this tier generates text; use an embed tier")
    if "top_logprobs" in fields and not fields.get("logprobs"):
        return RowProblem("invalid_request", "top_logprobs: needs logprobs: true")
    choice = fields.get("tool_choice", "auto" if "tools" in fields else "none")
    if choice != "none" and "tools" not in fields:
        return RowProblem("invalid_request", "tool_choice: there are no tools to choose from")
    if choice != "none" and not config.tool_parser:
        return RowProblem("unsupported", "tools: this tier has no tool_parser to read the calls")
    return _unknown_adapter(config, fields)


def _pooling_refusal(config: VLLM, request: Request) -> RowProblem | None:
    task = config.task
    if meaningless := sorted(request.sampling.keys() - _POOLING_FIELDS[task]):
        return RowProblem(
            "unsupported", f"{meaningless[0]}: means nothing to a tier of task {task}"
        )
    wanted = 2 if task == "score" else 1
    if [message["role"] for message in request.messages] != ["user"] * wanted:
        texts = "two user messages, query and document" if wanted == 2 else "one user message"
        return RowProblem("unsupported", f"messages: a tier of task {task} takes {texts}")
    return None


def _unknown_adapter(config: VLLM, fields: Mapping[str, Any]) -> RowProblem | None:
    name = fields.get("lora")
    if name is None or name in config.lora_adapters:
        return None
    known = ", ".join(config.lora_adapters) or "none"
    return RowProblem("unsupported", f"lora: this tier has no adapter {name!r}; it has {known}")


class StatedContext:
    """The context length that a local model's files or the configuration state."""

    def __init__(self, config: VLLM) -> None:
        self._config = config

    def refuse(self, request: Request) -> RowProblem | None:
        """Refuses what is surely too long; the exact check comes with the engine."""
        limit = self._limit
        if limit is None or text_bytes(request) < _SUSPICIOUS_BYTES_PER_TOKEN * limit:
            return None
        text = "".join(text_of(m.get("content")) for m in request.messages)
        tokens = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return too_long(tokens, limit) if tokens > limit else None

    @cached_property
    def _limit(self) -> int | None:
        has_tokenizer = Path(self._config.model, "tokenizer.json").is_file()
        return stated_context(self._config) if has_tokenizer else None

    @cached_property
    def _tokenizer(self) -> Any:
        """Without torch, so in a fraction of the time."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(self._config.model)


def stated_context(config: VLLM) -> int | None:
    """Tokens that a prompt and its answer may have together, if that can be told."""
    stated = config.engine_args.get("max_model_len")
    file = Path(config.model, "config.json")
    if stated is None and file.is_file():
        stated = json.loads(file.read_text()).get("max_position_embeddings")
    # vLLM takes -1 and "auto" too: it then chooses by the memory that there is.
    return stated if isinstance(stated, int) and stated > 0 else None


def text_bytes(request: Request) -> int:
    return sum(len(text_of(m.get("content")).encode()) for m in request.messages)


def too_long(tokens: int, limit: int) -> RowProblem:
    return RowProblem(
        "context_length",
        f"the prompt has {tokens} tokens; the model holds {limit} with the answer. "
        "Shorten it or route it to a tier with a longer context",
    )
