"""The words of a free question, each amount and each word in the one spelling it has here."""

from collections.abc import Sequence

from pipelines.gates import amounts, dates, lexicon, synonyms
from pipelines.gates.tokens import Token

_ARTICLES = frozenset(("a", "an", "the"))
_LETTERED = lexicon.words(
    "vitamin plan type option grade hepatitis group section part step level class category "
    "appendix exhibit schedule team side point influenza"
)
_NOT_ONE = lexicon.words(
    "no any some every which this that the each another do can should would could is not"
)
_POINTS = lexicon.words("my your his her its our their these those this that")
_COUNTED = frozenset((*amounts.UNITS, "per"))
_SPECIAL = (
    frozenset(amounts.UNITS_OF_TEN)
    | frozenset(amounts.TENS)
    | frozenset(amounts.ORDINAL)
    | frozenset(amounts.SCALES)
    | frozenset(amounts.CURRENCY)
    | frozenset(dates.MONTH)
    | amounts.BARE
    | {"hundred"}
)


def amounts_of(tokens: Sequence[Token]) -> list[Token]:
    """Numbers, dates, units and money in one spelling."""
    words = [token.text for token in tokens]
    out: list[Token] = []
    at, before = 0, ""
    while at < len(words):
        word = words[at]
        if word.isalpha() and word not in _SPECIAL and not _counts(before):
            read, taken = [tokens[at]], 1
        else:
            read, taken = _amount(tokens[at], words, at, before)
        out += read
        at, before = at + taken, read[-1].text
    return _ranges(out)


def _amount(token: Token, words: Sequence[str], at: int, before: str) -> tuple[list[Token], int]:
    """The tokens for what begins at a place, and how many words it takes."""
    word = token.text
    found = dates.day(words, at) if at + 1 < len(words) else None
    if found:
        return [Token(found[0])], found[1]
    if word.startswith("money:"):
        if at + 1 < len(words) and amounts.FIGURE.match(words[at + 1]):
            read, taken = _figure(words[at + 1], words, at + 2, money=True)
            return [read, Token(word[6:])], taken + 1
        return [Token(word[6:])], 1
    if amounts.FIGURE.match(word):
        read, taken = _figure(word, words, at + 1, money=False)
        return [read], taken
    written = None if _no_number(word, before) else amounts.numeral(words, at)
    if written:
        return [Token(written[0])], written[1]
    return [_unit(token, before)], 1


def _figure(digits: str, words: Sequence[str], after: int, money: bool) -> tuple[Token, int]:
    if after < len(words) and words[after] in amounts.SCALES:
        return Token(amounts.scaled(digits, words[after])), 2
    return Token(amounts.figure(digits, money)), 1


def _no_number(word: str, before: str) -> bool:
    """Pronouns and units that are also numbers: "no one", "which one", "one second"."""
    return (word == "one" and before in _NOT_ONE) or (word == "second" and _counts(before))


def _counts(before: str) -> bool:
    """Whether what follows may be a unit."""
    return before in _COUNTED or amounts.FIGURE.match(before) is not None


def _unit(token: Token, before: str) -> Token:
    word = token.text.removeprefix("unit:")
    if word in amounts.BARE or (word in amounts.UNIT and _counts(before)):
        return Token(amounts.UNIT[word])
    if word != token.text:
        return Token(word.lower())
    return Token(dates.MONTH_NAMES.get(word) or amounts.CURRENCY.get(word, word), token.named)


def _ranges(tokens: list[Token]) -> list[Token]:
    """ "2 to 3 days" as "2 .. 3 days"."""
    for at in range(1, len(tokens) - 2):
        if tokens[at].text != "to":
            continue
        low, high = tokens[at - 1].text, tokens[at + 1].text
        if amounts.FIGURE.match(low) and amounts.FIGURE.match(high) and float(low) < float(high):
            tokens[at] = Token("..")
    return tokens


def same_words(tokens: Sequence[Token]) -> list[str]:
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
            # "My cards" are all of mine: what is pointed at has a number.
            pointed = at > 0 and words[at - 1] in _POINTS
            out.append(words[at] if pointed else _singular(tokens[at]))
            at += 1
    return out


def _singular(token: Token) -> str:
    if token.named or not token.text.isalpha():
        return token.text
    word = synonyms.singular(token.text)
    return synonyms.SAME.get(word, word)


def without_articles(words: Sequence[str]) -> list[str]:
    """Without articles and pauses, but for those that make it another question."""
    if len(words) == 4 and words[1] == "is" and words[2] == "the":
        # "What is the matter" is not "what is matter".
        return [*words[:2], "the^", words[3]]
    out: list[str] = []
    for at, word in enumerate(words):
        if not word:
            continue
        follows = words[at + 1] if at + 1 < len(words) else ","
        if word == "a" and (follows == "," or (out and out[-1] in _LETTERED)):
            out.append("a^")
        elif word == "," and at == len(words) - 2:
            # "Let us eat, Ann": a last word apart is who is spoken to, or an aside.
            out.append(word)
        elif word in ("no", "not", "stop") and follows == ",":
            out.append(word + ",")
        elif word not in _ARTICLES and word != ",":
            out.append(word)
    return out
