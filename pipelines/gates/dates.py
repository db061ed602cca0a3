"""Days and times of day: one spelling for each. What could be read in two ways stays as it is."""

import re
from collections.abc import Sequence

from pipelines.gates import lexicon

_MONTHS = lexicon.ordered(
    "january february march april may june july august september october november december"
)
MONTH = {name: number for number, name in enumerate(_MONTHS, 1)} | {
    name[:3]: number for number, name in enumerate(_MONTHS, 1) if name != "may"
}
MONTH |= {"sept": 9, "may~": 5, "march~": 3, "august~": 8}
MONTH_NAMES = {
    name[:length]: name
    for name in _MONTHS
    for length in (3, 4)
    if name[:length]
    not in (
        "may",
        "mar",
        "marc",
        "janu",
        "febr",
        "apri",
        "june",
        "july",
        "augu",
        "octo",
        "nove",
        "dece",
    )
}
DAY = {
    **{
        name: name
        for name in lexicon.ordered("monday tuesday wednesday thursday friday saturday sunday")
    },
    **{"mon": "monday", "tue": "tuesday", "tues": "tuesday", "wed": "wednesday"},
    **{"thu": "thursday", "thur": "thursday", "thurs": "thursday", "fri": "friday"},
}
WHEN = lexicon.words(
    "today tomorrow yesterday tonight now currently current latest recent recently next last ago "
    "noon midnight morning afternoon evening night daily weekly monthly yearly annual annually "
    "bc ad bce ce weekend weekday week month year decade century day hour minute second spring "
    "summer autumn fall winter soon later earlier early late"
)
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?\s?([ap])?", re.IGNORECASE)
_DAY_OF_MONTH = re.compile(r"([1-9]|[12]\d|3[01])(?:th)?$")
_YEAR = re.compile(r"[12]\d{3}$")


def clock(written: str) -> str:
    """ "5 pm", "5:00pm" and "17:00" -> "time:17:00"; an hour without am or pm keeps its doubt."""
    match = _CLOCK.match(written)
    if match is None:
        return written
    hour, minute, half = int(match[1]), match[2] or "00", (match[3] or "").lower()
    if half and 1 <= hour <= 12:
        hour = hour % 12 + (12 if half == "p" else 0)
    elif half:
        return f"time:{written}"
    return f"time:{hour:02}:{minute}"


def day(words: Sequence[str], start: int) -> tuple[str, int] | None:
    """The date with a month's name at `start` and how many words it takes."""
    for order in ((0, 1), (1, 0)):
        found = _day_and_month(words, start, *order)
        if found:
            return found
    return None


def _day_and_month(
    words: Sequence[str], start: int, day_at: int, month_at: int
) -> tuple[str, int] | None:
    taken = [start, start + 1]
    if day_at == 0 and words[start + 1 : start + 2] == ["of"]:
        taken[1] += 1
    if taken[1] >= len(words):
        return None
    number, month = words[taken[day_at]], MONTH.get(words[taken[month_at]])
    match = _DAY_OF_MONTH.match(number)
    if match is None or month is None:
        return None
    end = taken[1] + 1
    comma = words[end : end + 1] == [","]
    year = words[end + comma] if end + comma < len(words) else ""
    if _YEAR.match(year):
        return f"date:{year}-{month:02}-{int(match[1]):02}", end + comma + 1 - start
    return f"date:{month:02}-{int(match[1]):02}", end - start
