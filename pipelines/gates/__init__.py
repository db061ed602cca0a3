"""Whether one answer may serve two questions: the gates of the response cache.

Similarity only proposes. A gate is a view of a prompt's normal form, and two prompts pass it
where they look the same through it. So gates are symmetric, a prompt never conflicts with
itself, and what serves each other are classes: the order in which entries came plays no part.

The last two gates see every word and its place. Nothing passes because nobody thought of it:
what may differ is what the normal form folds (`form`, `templates`, `synonyms`), and the gates
before them give the difference its name.
"""

from collections.abc import Callable, Collection

from pipelines.gates import amounts, dates, lexicon, opposites
from pipelines.gates.form import STRICT, Form, form_of

View = Callable[[Form], object]


def conflict(cached: str, asked: str) -> str | None:
    """The first gate that forbids that one answer serves both questions, or None.

    Any two Unicode texts are allowed. The same text twice never conflicts.
    """
    if cached == asked:
        return None
    first, second = form_of(cached), form_of(asked)
    if first == second:
        return None
    return next((name for name, view in GATES.items() if view(first) != view(second)), None)


def _among(*vocabularies: Collection[str]) -> View:
    """Sees the words of some vocabularies, each as often as it is there, in any order."""
    vocabulary = frozenset().union(*vocabularies)
    return lambda form: sorted(word for word in form.tokens if word in vocabulary)


def _beginning(*marks: str) -> View:
    """Sees what begins with one of the marks, in order."""
    return lambda form: [word for word in form.tokens if word.startswith(marks)]


def _numbers(form: Form) -> object:
    """Figures and ordinals, with sign and in order: 8 from 20 is not 20 from 8."""
    return [
        word
        for word in form.tokens
        if word == ".."
        or (word[0] in "+-.0123456789" and word.strip("+-.").rstrip("th").isdigit())
        or amounts.FIGURE.match(word)
    ]


def _symbols(form: Form) -> object:
    return [word for word in form.tokens if word[0] == "`" or not any(c.isalnum() for c in word)]


GATES: dict[str, View] = {
    "payload": lambda form: form.payload,
    "language": lambda form: (form.mode == STRICT, form.scripts),
    "quoted text": _beginning('"'),
    "identifiers": _beginning("="),
    "code and formulae": _symbols,
    "dates and times": lambda form: (
        _beginning("date:", "time:")(form),
        _among(dates.WHEN, dates.MONTH, dates.DAY.values())(form),
    ),
    "numbers": _numbers,
    "currency": _among(amounts.CURRENCIES),
    "units": _among(amounts.UNITS),
    "negation": _among(lexicon.NEGATION),
    "comparatives": _among(lexicon.COMPARATIVE),
    "quantifiers": _among(lexicon.QUANTIFIER),
    "antonyms": _among(opposites.POLAR),
    "question type": _among(lexicon.QUESTION),
    "task and format": _among(lexicon.TASK),
    "tense and modality": _among(lexicon.MODAL),
    "person": _among(lexicon.PRONOUN),
    "prepositions": _among(lexicon.PREPOSITION),
    "named languages and countries": _among(lexicon.LANGUAGE, lexicon.NAMES),
    "words": lambda form: (form.mode, sorted(form.tokens)),
    "word order": lambda form: form.tokens,
}
"""Every gate and what it sees of a prompt, in the order in which they are asked."""
