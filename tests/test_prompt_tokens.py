from typing import Any

import pytest
from conftest import ROOT
from transformers import AutoTokenizer

from actors.prompt_tokens import PromptTokens

SYSTEM = "Rules of this desk: answer in one line, politely. " * 12


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ROOT / "demo/models/small")


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


class Counting(PromptTokens):
    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.seen: list[str] = []

    def _encode(self, text: str) -> list[int]:
        self.seen.append(text)
        return super()._encode(text)


TEXTS = ["Sort: 3 1 2", "über ☃ naïve", " leading and trailing ", "<|end|> inside", "x" * 400, "\n"]


def test_tokens_are_those_of_the_whole_prompt(tokenizer: Any) -> None:
    tokens = PromptTokens(tokenizer)
    for text in TEXTS * 2:
        expected = tokenizer.apply_chat_template(
            chat(text), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert tokens(chat(text)) == expected


def test_a_shared_text_is_tokenized_once(tokenizer: Any) -> None:
    tokens = Counting(tokenizer)
    for i in range(5):
        tokens(chat(f"question {i}"))
    # Once as a piece and once in the whole prompt that it was checked against.
    assert sum(SYSTEM.strip() in text for text in tokens.seen) == 2


def test_a_tokenizer_that_looks_across_special_tokens_gets_whole_prompts(tokenizer: Any) -> None:
    class Crossing(PromptTokens):
        def _encode(self, text: str) -> list[int]:
            return [1, *super()._encode(text)]

    tokens = Crossing(tokenizer)
    whole = Crossing(tokenizer)
    whole._pieces = None
    text = SYSTEM + "<|end|>" + SYSTEM
    # The second time nothing in it is new, and so nothing is checked.
    assert [tokens.encode(text) for _ in range(2)] == [whole.encode(text)] * 2
    assert tokens.encode(text + " again") == whole.encode(text + " again")


def test_what_is_remembered_serves_only_prompts_with_the_same_salt(tokenizer: Any) -> None:
    tokens = Counting(tokenizer)
    for salt in ("acme", "acme", "other", None):
        assert tokens(chat("question"), salt) == PromptTokens(tokenizer)(chat("question"))
    # Each as a piece and in the whole prompt that it was checked against.
    assert sum(SYSTEM.strip() in text for text in tokens.seen) == 2 * 3
