"""A prompt as text: characters that only look different made one, the payload split off."""

import re
import unicodedata
from typing import NamedTuple

from pipelines.gates.lexicon import OPENERS, POLITE

LONGEST = 4000
"""Characters. A longer text is compared as it is: it is data rather than a question."""

# The keys by number: most of them look like their values.
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'"),
        **dict.fromkeys("\u2010\u2011\u2013\u2212", "-"),
        **dict.fromkeys("\u200b\ufeff\u00ad", None),
        # Stands for a space inside of a token.
        "\0": " ",
        "\u2026": "...",
        "\u00d7": "*",
        "\u00f7": "/",
        "\uff1f": "?",
        "\uff01": "!",
        "\uff0c": ",",
        "\uff1a": ": ",
    }
)
_DASH = re.compile(r"\s*—\s*|\s+-\s+(?=[A-Za-z]{2})")
_COLON = re.compile(r":(?=\s)")
_SHOWN = re.compile(
    r"\b(?:this|these|following|below|next)\s+(?:\w+\s+)?(?:texts?|messages?|reviews?|e-?mails?|"
    r"sentences?|paragraphs?|passages?|articles?|code|functions?|lists?|tweets?|comments?|words?|"
    r"questions?|statements?|poems?|documents?|tickets?|posts?|queries|query|story|snippets?)\b"
    r"|\b(?:is|are|was|were)\s+(?:this|these)\b(?=[^.?!]*\?)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.?!]\s+(?=\S)")
_FIRST_WORD = re.compile(r"[a-z]+")


class Prompt(NamedTuple):
    """What a prompt asks for, and the data that it asks it about (None without any).

    An `instruction` may be said in other words; not a character of a `payload` may differ,
    white space between words apart, and in several lines not even that.
    """

    instruction: str
    payload: str | None


def clean(text: str) -> str:
    """NFC, with one kind of quotes, dashes and pauses. Not NFKC: it makes x² the same as x2."""
    return unicodedata.normalize("NFC", text).translate(_CHARACTERS).strip()


def split_payload(text: str) -> Prompt:
    """Where the instruction of a cleaned text ends: at a line, a colon, or "... this review."."""
    head, newline, rest = text.partition("\n")
    if newline:
        if not _instructs(head):
            return Prompt("", text)
        inner = split_payload(head.strip())
        return Prompt(inner.instruction, "\n".join(filter(None, (inner.payload, rest.strip("\n")))))
    text = _DASH.sub(" , ", text)
    colon = _COLON.search(text)
    if colon and colon.end() < len(text):
        return Prompt(text[: colon.start()], " ".join(text[colon.end() :].split()))
    shown = _SHOWN.search(text)
    end = _SENTENCE_END.search(text, shown.end()) if shown else None
    if end:
        return Prompt(text[: end.start()], " ".join(text[end.end() :].split()))
    return Prompt(text, None)


def _instructs(line: str) -> bool:
    """Whether a first line asks for something, so that what follows is its data."""
    first = _FIRST_WORD.match(line.lower())
    return first is not None and (first[0] in OPENERS or first[0] in POLITE)
