"""A prompt's normal form. Two prompts may share an answer only where their forms are the same."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from pipelines.gates import amounts, dates, lexicon, synonyms, templates
from pipelines.gates.text import LONGEST, clean, split_payload
from pipelines.gates.tokens import Token, tokenise

FREE, LITERAL, STRICT, VERBATIM = "free", "literal", "strict", "verbatim"

_ARTICLES = frozenset(("a", "an", "the"))
_LETTERED = lexicon.words(
    "vitamin plan type option grade hepatitis group section part step level class category "
    "appendix exhibit schedule team side point influenza"
)
_NOT_ONE = lexicon.words(
    "no any some every which this that the each another do can should would could is not"
)
_LITERAL_RULES = tuple(
    (templates.re.compile(pattern), new)
    for pattern, new in (
        (r"^what (?:does|do) (.+) mean$", r"meaning \1"),
        (r"^what is (?:the )?(?:meaning|definition) of ", "meaning "),
        (r"^define ", "meaning "),
        (r"^what is (?:a|the) (synonym|antonym|plural|opposite) (?:of|for) ", r"what is the \1 of "),
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
        return Form(STRICT, scripts, tuple(w for w in words if w != ","), payload)
    if payload is None and _mentions(words):
        return Form(LITERAL, scripts, _literal(words), None)
    return Form(FREE, scripts, _free(tokens), payload)


def scripts_of(text: str) -> frozenset[str]:
    """Latin, Cyrillic, CJK ... as Unicode names them."""
    if text.isascii():
        return frozenset(("LATIN",))
    return frozenset(
        unicodedata.name(character, "?").partition(" ")[0] for character in text if character.isalpha()
    )


def _is_english(words: Sequence[str], scripts: frozenset[str]) -> bool:
    plain = [word for word in words if word.isalpha()]
    known = sum(word in lexicon.ENGLISH for word in plain)
    foreign = sum(word in lexicon.FOREIGN for word in plain)
    return (
        scripts <= {"LATIN"}
        and any(word in lexicon.DISTINCTIVE for word in plain)
        and 4 * known >= len(plain)
        and known > foreign
    )


def _mentions(words: Sequence[str]) -> bool:
    """Whether a question is about words, and no quotation marks say about which."""
    return any(w in lexicon.MENTION for w in words) and not any(w[0] in '"`' for w in words)


def _literal(words: Sequence[str]) -> tuple[str, ...]:
    sentence = templates.ask(" ".join(words), courtesies_only=True)
    for pattern, new in _LITERAL_RULES:
        sentence = pattern.sub(new, sentence)
    return tuple(sentence.split(" "))


def _free(tokens: Sequence[Token]) -> tuple[str, ...]:
    words = _same_words(_amounts(tokens))
    sentence = templates.ask(" ".join(words))
    return tuple(_without_articles(sentence.split(" ")))


def _amounts(tokens: Sequence[Token]) -> list[Token]:
    """Numbers, dates, units and money in one spelling."""
    words = [token.text for token in tokens]
    out: list[Token] = []
    at, money = 0, ""
    while at < len(words):
        word, before = words[at], out[-1].text if out else ""
        found = dates.day(words, at) if at + 1 < len(words) else None
        found = found or (None if _no_number(word, before) else amounts.numeral(words, at))
        text, taken = found or (word, 1)
        at += taken
        if text.startswith("money:"):
            if at < len(words) and amounts.FIGURE.match(words[at]):
                money = text[6:]
                continue
            text = text[6:]
        if amounts.FIGURE.match(text):
            if at < len(words) and words[at] in amounts.SCALES:
                text, at = amounts.scaled(text, words[at]), at + 1
            out.append(Token(amounts.figure(text, bool(money))))
            out += [Token(money)] if money else []
            money = ""
        else:
            out.append(_unit(text, tokens[at - 1].named and not found, before))
    return _ranges(out)


def _no_number(word: str, before: str) -> bool:
    """Pronouns and units that are also numbers: "no one", "which one", "one second"."""
    after_figure = amounts.FIGURE.match(before) is not None or before == "per"
    return (word == "one" and before in _NOT_ONE) or (word == "second" and after_figure)


def _unit(word: str, named: bool, before: str) -> Token:
    counted = amounts.FIGURE.match(before) is not None or before in (*amounts.UNITS, "per")
    bare = word.removeprefix("unit:")
    if counted and bare in amounts.UNIT:
        return Token(amounts.UNIT[bare])
    if word in amounts.BARE:
        return Token(amounts.UNIT[word])
    return Token(amounts.CURRENCY.get(word, bare if word == bare else bare.lower()), named)


def _ranges(tokens: list[Token]) -> list[Token]:
    """ "2 to 3 days" as "2 .. 3 days"."""
    for at in range(1, len(tokens) - 2):
        low, high = tokens[at - 1].text, tokens[at + 1].text
        joins = tokens[at].text == "to" and amounts.FIGURE.match(low) and amounts.FIGURE.match(high)
        if joins and float(low) < float(high):
            tokens[at] = Token("..")
    return tokens


def _same_words(tokens: Sequence[Token]) -> list[str]:
    """Each word or phrase as the one that stands for all that mean the same."""
    words = [token.text for token in tokens]
    out: list[str] = []
    at = 0
    while at < len(words):
        for length in range(synonyms.PHRASE_STARTS.get(words[at], 0), 0, -1):
            same = synonyms.SAME.get(" ".join(words[at : at + length]))
            if same and not (length == 1 and tokens[at].named):
                out += same.split(" ")
                at += length
                break
        else:
            out.append(_singular(tokens[at]))
            at += 1
    return out


def _singular(token: Token) -> str:
    if token.named or not token.text.isalpha():
        return token.text
    word = synonyms.singular(token.text)
    return synonyms.SAME.get(word, word)


def _without_articles(words: Sequence[str]) -> list[str]:
    out = []
    for at, word in enumerate(words):
        follows = words[at + 1] if at + 1 < len(words) else ","
        if word == "a" and (follows == "," or (out and out[-1] in _LETTERED)):
            out.append("a^")
        elif word in ("no", "not", "stop") and follows == ",":
            out.append(word + ",")
        elif word not in _ARTICLES and word != ",":
            out.append(word)
    return out
