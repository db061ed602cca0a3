"""What a row asks for, in vLLM's words: parameters, adapter, parsers, and the prompt itself.

vLLM's own request model is used where a row or its tier asks for more than text, so that
response formats, tool choices and the grammars of a model's tool calls mean here what they mean
on vLLM's server.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from actors.vllm_prompts import Prompt, Prompts
from pipelines.errors import RowProblem
from pipelines.requests import Request
from pipelines.tier import VLLM

if TYPE_CHECKING:
    from vllm import PoolingParams, SamplingParams
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import Parser
    from vllm.v1.engine.async_llm import AsyncLLM

# Fields that `SamplingParams` takes under the same name.
_PASSED = (
    "min_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "ignore_eos",
    "bad_words", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "n",
)  # fmt: skip
# Fields that vLLM's request model reads.
_CHAT_FIELDS = (
    "response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls",
    "chat_template_kwargs", "skip_special_tokens",
)  # fmt: skip
_NEED_CHAT = ("response_format", "structured_outputs", "tools")


@dataclass(frozen=True)
class Ask:
    """One request as vLLM takes it.

    Attributes:
        options: further arguments of `AsyncLLM.generate` or `encode`.
        chat: vLLM's own request model, which parsers read; None where nothing is parsed.
        generates: whether tokens come of it, not a vector.
        cache_salt: see `Request`.
    """

    tokens: list[int]
    params: "SamplingParams | PoolingParams"
    options: dict[str, Any] = field(default_factory=dict)
    chat: "ChatCompletionRequest | None" = None
    generates: bool = True
    cache_salt: str | None = None

    @property
    def choices(self) -> int:
        return self.params.n if self.generates else 1


class Translator:
    """Turns requests into what a started engine takes."""

    def __init__(self, config: VLLM, llm: "AsyncLLM") -> None:
        from transformers import PreTrainedTokenizerBase
        from vllm.lora.request import LoRARequest

        rendering = inspect.signature(PreTrainedTokenizerBase.apply_chat_template)
        self._reserved = set(rendering.parameters)
        self._config = config
        self._model = llm.model_config
        self.least_room = 1 if config.task == "generate" else 0
        self._tokenizer = llm.get_tokenizer()
        self._prompts = Prompts(self._tokenizer, config.task, self._model.use_sep_token)
        self.parser = _parser_class(config, self._tokenizer)
        self.adapters: dict[str, LoRARequest] = {
            name: LoRARequest(name, number, folder)
            for number, (name, folder) in enumerate(config.lora_adapters.items(), 1)
        }

    def refuse(self, fields: Mapping[str, Any]) -> RowProblem | None:
        """What the model's chat template cannot do for a row."""
        if clash := sorted(fields.get("chat_template_kwargs", {}).keys() & self._reserved):
            message = f"chat_template_kwargs.{clash[0]}: is not for the template to know"
            return RowProblem("invalid_request", message)
        if "tools" in fields and "tools" not in self._tokenizer.get_chat_template(tools=[]):
            return RowProblem("unsupported", "tools: this model's chat template ignores them")
        return None

    def tokenize(self, request: Request, fields: Mapping[str, Any]) -> Prompt:
        """Raises whatever the chat template raises."""
        return self._prompts.read(request, fields)

    def ask(
        self, request: Request, fields: Mapping[str, Any], prompt: Prompt, room: int
    ) -> Ask | RowProblem:
        """What to ask the engine for, or why that cannot be asked."""
        from vllm.exceptions import VLLMClientError

        lora, salt = self.adapters.get(fields.get("lora", "")), request.cache_salt
        options: dict[str, Any] = {"lora_request": lora} if lora else {}
        if self._config.task != "generate":
            params = self._pooling_params(fields, prompt)
            return Ask(prompt.tokens, params, options, generates=False, cache_salt=salt)
        try:
            chat = self._chat(request, fields)
            if chat is not None and self.parser is not None:
                chat, more = self._parsed_by_vllm(self.parser, chat, prompt.tokens)
                options |= more
            sampling = _sampling_params(fields, room, chat)
            return Ask(prompt.tokens, sampling, options, chat, cache_salt=salt)
        except ValidationError as error:
            first = error.errors()[0]
            return RowProblem("invalid_request", f"{first['loc'][0]}: {first['msg']}")
        # A tool's or a schema's place in the request may hold anything.
        except (ValueError, TypeError, KeyError, VLLMClientError) as error:
            return RowProblem("invalid_request", str(error))

    def _pooling_params(self, fields: Mapping[str, Any], prompt: Prompt) -> "PoolingParams":
        from vllm import PoolingParams

        if self._config.task == "embed":
            return PoolingParams(task="embed", dimensions=fields.get("dimensions"))
        if prompt.second_at is None:
            return PoolingParams(task="classify")
        told = {"compressed_token_type_ids": prompt.second_at}
        return PoolingParams(task="classify", extra_kwargs=told)

    def _chat(self, request: Request, fields: Mapping[str, Any]) -> "ChatCompletionRequest | None":
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        if self.parser is None and not any(name in fields for name in _NEED_CHAT):
            return None
        given = {name: fields[name] for name in _CHAT_FIELDS if name in fields}
        return ChatCompletionRequest(messages=request.messages, **given)

    def _parsed_by_vllm(
        self, parser: "type[Parser]", chat: "ChatCompletionRequest", tokens: list[int]
    ) -> tuple["ChatCompletionRequest", dict[str, Any]]:
        """The request with the grammar of this model's calls, and when that grammar begins."""
        instance = build_parser(parser, self._tokenizer, self._model, chat)
        if parser.reasoning_parser_cls is not None or chat.tool_choice != "none":
            chat = instance.adjust_request(chat)
        if instance.reasoning_parser is None:
            return chat, {}
        variables = {"chat_template_kwargs": chat.chat_template_kwargs or {}}
        return chat, {
            "reasoning_ended": chat.resolve_reasoning_ended(instance, tokens),
            "reasoning_parser_kwargs": variables,
        }


def build_parser(
    parser: "type[Parser]", tokenizer: Any, model: Any, chat: "ChatCompletionRequest"
) -> "Parser":
    """A parser for one request: it has state, and may look at tools and template variables."""
    return parser(
        tokenizer,
        chat.tools,
        model_config=model,
        chat_template_kwargs=chat.chat_template_kwargs or {},
    )


def _parser_class(config: VLLM, tokenizer: Any) -> "type[Parser] | None":
    from vllm.parser import ParserManager

    return ParserManager.get_parser(
        tool_parser_name=config.tool_parser,
        reasoning_parser_name=config.reasoning_parser,
        enable_auto_tools=True,
        model_name=config.model,
        tokenizer=tokenizer,
    )


def _sampling_params(
    fields: Mapping[str, Any], room: int, chat: "ChatCompletionRequest | None"
) -> "SamplingParams":
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    passed = {name: fields[name] for name in _PASSED if fields.get(name) is not None}
    if "logit_bias" in fields:
        passed["logit_bias"] = {int(token): bias for token, bias in fields["logit_bias"].items()}
    if "skip_special_tokens" in fields:
        passed["skip_special_tokens"] = fields["skip_special_tokens"]
    if chat is not None:
        passed["structured_outputs"] = chat.extract_structured_outputs()
        passed["skip_special_tokens"] = chat.skip_special_tokens
    return SamplingParams(
        max_tokens=min(fields.get("max_tokens") or room, room),
        logprobs=_num_logprobs(fields),
        # One object a request instead of one a step.
        output_kind=RequestOutputKind.FINAL_ONLY,
        **passed,
    )


def _num_logprobs(fields: Mapping[str, Any]) -> int | None:
    """The likeliest tokens asked for at each place; 0 is the chosen one alone."""
    asked = fields.get("logprobs")
    if asked is True:
        return fields.get("top_logprobs", 0)
    return None if asked is False else asked
