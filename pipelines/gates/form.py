"""A prompt's normal form. Two prompts may share an answer only where their forms are the same."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from pipelines.gates import lexicon, spelling, templates
from pipelines.gates.text import LONGEST, clean, split_payload
from pipelines.gates.tokens import Token, tokenise

FREE, LITERAL, STRICT, VERBATIM = "free", "literal", "strict", "verbatim"

_COURTESY = lexicon.POLITE | frozenset((",", "can", "could", "would", "will", "you", "there"))
_LITERAL_RULES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^what (?:does|do) (.+) mean$", r"meaning \1"),
        (r"^what is (?:the )?(?:meaning|definition) of ", "meaning "),
        (r"^define ", "meaning "),
        (
            r"^what is (?:a|the) (synonym|antonym|plural|opposite) (?:of|for) ",
            r"what is the \1 of ",
        ),
        (r"^how (?:do|can|would) (?:i|you|we|one) (say|spell|pronounce) ", r"how to \1 "),
    )
)


class Form(NamedTuple):
    """How a prompt asks (`mode`), what in (`scripts`), with which words, about which data.

    free: English whose words may be other words; literal: English that is about words;
    strict: another language, only case, punctuation and white space are folded;
    verbatim: nothing but white space is.
    """

    mode: str
    scripts: frozenset[str]
    tokens: tuple[str, ...]
    payload: str | None


@lru_cache(maxsize=65536)
def form_of(text: str) -> Form:
    """The normal form of any Unicode text; of a text without one, the text itself."""
    text = clean(text)
    if len(text) > LONGEST:
        return Form(VERBATIM, frozenset(), (), text)
    instruction, payload = split_payload(text)
    tokens = tokenise(instruction)
    words = [token.text for token in tokens]
    if not words:
        return Form(VERBATIM, scripts_of(text), (), text)
    scripts = scripts_of(instruction)
    if not _is_english(words, scripts):
        spoken = tuple(w for at, w in enumerate(words) if w != "," or at == len(words) - 2)
        return Form(STRICT, scripts, spoken, payload)
    if payload is None and _mentions(words):
        return Form(LITERAL, scripts, _literal(words), None)
    return Form(FREE, scripts, _free(tokens), payload)


def scripts_of(text: str) -> frozenset[str]:
    """Latin, Cyrillic, CJK ... as Unicode names them."""
    if text.isascii():
        return frozenset(("LATIN",))
    return frozenset(
        unicodedata.name(character, "?").partition(" ")[0]
        for character in text
        if character.isalpha()
    )


def _is_english(words: Sequence[str], scripts: frozenset[str]) -> bool:
    plain = [word for word in words if word.isalpha()]
    known = sum(word in lexicon.ENGLISH for word in plain)
    foreign = sum(word in lexicon.FOREIGN for word in plain)
    enough = 4 if any(word in lexicon.DISTINCTIVE for word in plain) else 2
    sure = enough == 4 or known > 1
    return sure and scripts <= {"LATIN"} and enough * known >= len(plain) and known > foreign


def _mentions(words: Sequence[str]) -> bool:
    """Whether a question is about words, and no quotation marks say about which."""
    if any(word[0] in '"`' for word in words):
        return False
    task = next((word for word in words if word not in _COURTESY), "")
    return task in lexicon.MENTIONING or any(word in lexicon.MENTION for word in words)


def _literal(words: Sequence[str]) -> tuple[str, ...]:
    sentence = templates.ask(" ".join(words), leading_only=True)
    for pattern, new in _LITERAL_RULES:
        sentence = pattern.sub(new, sentence)
    return tuple(filter(None, sentence.split(" ")))


def _free(tokens: Sequence[Token]) -> tuple[str, ...]:
    words = spelling.same_words(spelling.amounts_of(tokens))
    sentence = templates.ask(" ".join(words))
    return tuple(spelling.without_articles(sentence.split(" ")))
