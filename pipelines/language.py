"""Which language a text is in, by a small model that comes with its package: nothing is fetched."""

from functools import cache
from importlib.metadata import version

_READ_CHARS = 2000
_LEAST_PROBABILITY = 0.3
"""Less is a guess: a word or two, numbers, code."""
_UNDETERMINED = "und"


class Languages:
    """Tells 139 languages apart."""

    def __init__(self) -> None:
        # Its model takes most of a second to unpack, and few runs ask for it.
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identifier = LanguageIdentifier.from_model_file(
            MODEL_FILE, norm_probs=True, min_confidence=_LEAST_PROBABILITY
        )
        self.codes = frozenset(self._identifier.labels)

    def of(self, text: str) -> str | None:
        """The code of the language, of ISO 639-1 where that has one; None if nothing tells."""
        code, _ = self._identifier.classify(text[:_READ_CHARS])
        return None if code == _UNDETERMINED else str(code)


@cache
def languages() -> Languages:
    """The one of this process."""
    return Languages()


def languages_revision() -> str:
    """Changes with whatever may tell another language of a text."""
    return f"py3langid {version('py3langid')}, {_READ_CHARS}, {_LEAST_PROBABILITY}"
