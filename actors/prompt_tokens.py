"""From chat messages to token ids, remembering long texts that come again.

A system prompt or document that thousands of rows share would be tokenized thousands of times,
which for a small model costs as much as computing it once. A tokenizer splits at special tokens
first and treats what lies between on its own, so the tokens of such a piece can be kept. Whether
a given tokenizer really does is checked on every prompt that brings a new piece: the first
difference ends the remembering.
"""

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

logger = logging.getLogger(__name__)

_WORTH_KEEPING_CHARS = 256
_KEPT_PIECES = 512


class PromptTokens:
    """Applies a model's chat template and tokenizes the result.

    Args:
        tokenizer: as `transformers` loads it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = _special_tokens(tokenizer)
        pattern = "|".join(re.escape(text) for text in sorted(self._special, key=len)[::-1])
        self._pieces = re.compile(f"({pattern})") if pattern else None
        self._kept = lru_cache(maxsize=_KEPT_PIECES)(lambda piece, _: self._encode(piece))

    def __call__(
        self,
        messages: Sequence[dict[str, Any]],
        cache_salt: str | None = None,
        **template: Any,
    ) -> list[int]:
        """The prompt's token ids. Raises whatever the template raises.

        Args:
            cache_salt: what is remembered serves only prompts with the same one.
            template: further arguments for the chat template, such as tools.
        """
        arguments = {"add_generation_prompt": True, **template}
        if self._pieces is None:
            ids: list[int] = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False, **arguments
            )
            return ids
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
        return self.encode(text, cache_salt)

    def encode(self, text: str, cache_salt: str | None = None) -> list[int]:
        """The text's token ids; what a chat template would add must already be in it."""
        if self._pieces is None or len(text) < _WORTH_KEEPING_CHARS:
            return self._encode(text)
        new = self._kept.cache_info().misses
        ids: list[int] = []
        for piece in self._pieces.split(text):
            if piece in self._special:
                ids.append(self._special[piece])
            elif len(piece) < _WORTH_KEEPING_CHARS:
                ids += self._encode(piece) if piece else ()
            else:
                ids += self._kept(piece, cache_salt)
        if self._kept.cache_info().misses == new:
            return ids
        whole = self._encode(text)
        if whole != ids:
            logger.info("this tokenizer looks across special tokens; prompts are taken whole")
            self._pieces = None
        return whole

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """Tokens that end a piece whatever stands beside them; none if the tokenizer does not say."""
    if not getattr(tokenizer, "is_fast", False):
        return {}
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and not (token.lstrip or token.rstrip or token.single_word)
    }
