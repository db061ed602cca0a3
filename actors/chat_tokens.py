"""Prompts and answers as token ids, by a model folder's tokenizer and chat template."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig

from pipelines.errors import UsageProblem
from pipelines.requests import Request


class ChatTokens:
    """What vLLM would make of the same messages."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.end = self._end()

    def _end(self) -> int | None:
        """The token after a complete answer: one that stops generation."""
        own = self.tokenizer.eos_token_id
        if not Path(self.folder, "generation_config.json").is_file():
            return own
        ends = GenerationConfig.from_pretrained(self.folder).eos_token_id
        known = [ends] if isinstance(ends, int) else ends or [own]
        return own if own in known else known[0]

    def check(self) -> None:
        """Raises: UsageProblem if chats cannot be told apart from answers."""
        if not self.tokenizer.chat_template:
            raise UsageProblem(
                f"{self.folder}: its tokenizer has no chat template; add chat_template.jinja"
            )
        if self.end is None:
            raise UsageProblem(
                f"{self.folder}: no token ends an answer; set eos_token_id in "
                "generation_config.json"
            )

    def difference(self, other: "ChatTokens") -> str | None:
        """What sets two tokenizers apart, or None: the same ids must mean the same text."""
        mine, theirs = self.tokenizer.get_vocab(), other.tokenizer.get_vocab()
        if mine != theirs:
            differing = len(dict(mine.items() ^ theirs.items()))
            return f"{differing} tokens have other ids ({len(mine)} and {len(theirs)} in all)"
        for name in ("eos_token_id", "all_special_ids"):
            if getattr(self.tokenizer, name) != getattr(other.tokenizer, name):
                return f"{name} differs"
        return None

    def encode_prompt(self, request: Request) -> list[int] | None:
        """None where the chat template refuses the messages."""
        sampling = request.sampling
        try:
            text = self.tokenizer.apply_chat_template(
                request.messages,
                tools=sampling.get("tools"),
                tokenize=False,
                add_generation_prompt=True,
                **sampling.get("chat_template_kwargs", {}),
            )
        except TemplateError:
            return None
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def encode_answer(self, text: str, complete: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*ids, self.end] if complete and self.end is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
