"""From an instruction to words: what must stay exact is kept apart from what has many spellings.

A token with a first character of its own is exact: `=` an identifier, `"` a quotation, a
backtick code.
`^` (all capitals) or `~` (one) behind a word says that they make it another: `us^`, `may~`.
"""

import re
from typing import NamedTuple

from pipelines.gates import amounts, dates
from pipelines.gates.lexicon import CASED, QUESTION, words

_TOKEN = re.compile(
    r"""
      (?P<quote>"[^"]+"|(?<![\w'])'[^'\n]+(?:'[a-z]+[^'\n]*)*'(?!\w))
    | (?P<code>`+[^`]+`+|\$(?=[^$]*[\\^_={}])[^$\d\s][^$]*\$|\\[A-Za-z]+)
    | (?P<address>(?:https?://|www\.)\S*[^\s.,;!?)"']|[\w.+-]+@[\w-]+(?:\.[\w-]+)+)
    | (?P<flag>(?<!\S)(?:--?[A-Za-z][\w=-]*|\.\w+|/\w+(?:/[\w.]*)*|~/\S*))
    | (?P<clock>\b\d{1,2}(?::\d{2})?\s?[aApP]\.?[mM]\b\.?|(?<![\w:])\d{1,2}:\d{2}(?![\w:]))
    | (?P<money>(?:\b(?:US|AU|CA|A|C))?\$|[€£¥₹₩₽₿])
    | (?P<grouped>(?<![\w.])[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w))
    | (?P<signed>(?<![\w)\]])[+-]\d+(?:\.\d+)?(?!\w))
    | (?P<degree>°\s?[CFcf]\b)
    | (?P<run>[\#@]?\w+(?:[./\\:@\#&='_-]+\w+)*(?:\+\+|\#|(?<=s)'(?=\s)|\+(?=[\s.,?!]|$))?)
    | (?P<symbol>\S)
    """,
    re.VERBOSE,
)
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)([A-Za-zµΩ]+(?:/[a-z]+)?)$")
_RANGE = re.compile(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)$")
_ISO_DAY = re.compile(r"(\d{4})-(\d{2})-(\d{2})$")
_WORDS = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*'?$")
_INITIALS = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]$")
_SHORT_CODE = re.compile(r"[A-Za-z]{1,5}-?\d{1,2}$")
_FORMULA = frozenset("+*/=<>^|~&[]{}\\")
_PAUSE = frozenset(",.;?!:")
_SILENT = frozenset("\"'()¿¡")
_IS_AFTER = QUESTION | words("that it there here he she let this")
_SHORT = {
    "can't": "can not", "cannot": "can not", "cant": "can not", "won't": "will not",
    "shan't": "shall not", "i'm": "i am", "im": "i am", "ive": "i have", "whats": "what is",
    "hows": "how is", "wheres": "where is", "whos": "who is", "thats": "that is", "let's": "let us",
    "dont": "do not", "doesnt": "does not", "didnt": "did not", "isnt": "is not",
    "arent": "are not", "wasnt": "was not", "hasnt": "has not", "havent": "have not",
    "couldnt": "could not", "shouldnt": "should not", "wouldnt": "would not", "wont": "will not",
    "gonna": "going to", "wanna": "want to",
}  # fmt: skip
_ENDINGS = {"'re": " are", "'ve": " have", "'ll": " will", "'d": " would", "n't": " not"}
_SUFFIXES = frozenset(("st", "nd", "rd", "th"))


class Token(NamedTuple):
    """One word; `named` says that it has a capital that no sentence's start explains."""

    text: str
    named: bool = False


def tokenise(text: str) -> list[Token]:
    """The tokens of a cleaned instruction, in order, pauses as commas."""
    found = list(_TOKEN.finditer(text))
    cased = _has_case(text)
    # Brackets carry meaning beside operators and are only voice elsewhere.
    formula = any(m.lastgroup == "symbol" and m[0] in _FORMULA for m in found)
    tokens: list[Token] = []
    for match in found:
        starts = not tokens or tokens[-1].text == ","
        tokens += _read(match, starts, cased, formula)
    while tokens and tokens[-1].text == ",":
        tokens.pop()
    return tokens


def _read(match: re.Match[str], starts: bool, cased: bool, formula: bool) -> list[Token]:
    kind, text = match.lastgroup, match[0]
    if kind == "run":
        return _run(text, starts, cased)
    if kind == "symbol":
        return _symbol(text, match, formula)
    return [Token(_special(kind or "", text))]


def _special(kind: str, text: str) -> str:
    if kind == "quote":
        return '"' + text[1:-1].strip().replace(" ", "\0")
    if kind == "code":
        return "`" + text.replace(" ", "\0")
    if kind == "clock":
        return dates.clock(text)
    if kind == "money":
        return f"money:{amounts.CURRENCY[text.lower()]}"
    if kind in ("grouped", "signed"):
        return amounts.figure(text)
    if kind == "degree":
        return "celsius" if text[-1] in "Cc" else "fahrenheit"
    return "=" + text.replace(" ", "\0")


def _symbol(text: str, match: re.Match[str], formula: bool) -> list[Token]:
    before = match.string[match.start() - 1 : match.start()]
    if text == "!" and before.isdigit():
        return [Token("!")]
    if text in _PAUSE and not (formula and text in ",:"):
        return [Token(",")]
    if text in _SILENT and not (formula and text in "()"):
        return []
    if text == "%":
        return [Token("percent")]
    return [Token(text)]


def _run(text: str, starts: bool, cased: bool) -> list[Token]:
    if _WORDS.match(text):
        return _word(text, starts, cased)
    if text.isdigit():
        return [Token(text)]
    amount = _AMOUNT.match(text)
    if amount:
        read = _amount(amount[1], amount[2])
        if read:
            return read
    if _ISO_DAY.match(text):
        return [Token("date:" + text)]
    span = _RANGE.match(text)
    if span and float(span[1]) < float(span[2]):
        return [Token(span[1]), Token(".."), Token(span[2])]
    if amounts.FIGURE.match(text):
        return [Token(text)]
    if _INITIALS.match(text):
        return _word(text.replace(".", "").upper(), starts, True)
    if text.lower() in amounts.UNIT:
        return [Token(amounts.UNIT[text.lower()])]
    return [Token(text.lower() if _SHORT_CODE.match(text) else "=" + text)]


def _amount(digits: str, suffix: str) -> list[Token] | None:
    """ "5km", "3rd", "10k"; None for what is an identifier."""
    if suffix in _SUFFIXES:
        return [Token(f"{digits}th")]
    if suffix in ("k", "mn", "bn"):
        return [Token(amounts.scaled(digits, suffix))]
    if suffix == "s":
        return [Token(f"{digits}s")]
    unit = amounts.UNIT.get(suffix)
    return [Token(digits), Token(unit)] if unit else None


def _word(text: str, starts: bool, cased: bool) -> list[Token]:
    lower = text.lower()
    shouted = cased and len(text) > 1 and text.isupper()
    named = cased and not starts and text[0].isupper() and not text.isupper()
    if len(text) == 1 and cased and not starts and text == "A":
        return [Token("a^")]
    if lower in CASED and (shouted or named):
        return [Token(lower + ("^" if shouted else "~"), named)]
    if shouted and lower in amounts.CODES:
        return [Token(lower)]
    if cased and text != lower and (text in amounts.UNIT or lower in amounts.SYMBOLS):
        return [Token("unit:" + text)]
    parts = lower.split("-")
    if len(parts) > 1 and all(amounts.is_numeral(part) for part in parts):
        return [Token(part) for part in parts]
    return [Token(part, named) for part in _expand(lower).split()]


def _expand(word: str) -> str:
    """Contractions written out; of possessives the 's apart."""
    if word in _SHORT:
        return _SHORT[word]
    stem, mark, ending = word.rpartition("'")
    if not mark or not ending:
        return word
    if ending == "s":
        return f"{stem} is" if stem in _IS_AFTER else f"{stem} 's"
    if ending == "t" and stem.endswith("n"):
        return f"{stem[:-1]} not"
    return stem + _ENDINGS["'" + ending] if "'" + ending in _ENDINGS else word


def _has_case(text: str) -> bool:
    """Whether capitals say anything: not in all lower, all upper or Title Case."""
    alphabetic = [word for word in text.split() if word[0].isalpha()]
    capitals = sum(word[0].isupper() for word in alphabetic)
    titled = len(alphabetic) > 3 and capitals > 0.8 * len(alphabetic)
    return any(c.islower() for c in text) and not titled
