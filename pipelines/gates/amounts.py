"""Numbers, units and money: one spelling for each amount.

Figures keep their digits: 3.10 is not 3.1 (versions), 007 not 7. Only grouping is dropped, and
the cents that say nothing (`$5.00`).
"""

import re
from collections.abc import Sequence
from decimal import Decimal

from pipelines.gates.lexicon import ordered, words

_SMALL = ordered(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = ordered("twenty thirty forty fifty sixty seventy eighty ninety")
_ORDINALS = ordered(
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"
)
UNITS_OF_TEN = {word: value for value, word in enumerate(_SMALL)}
TENS = {word: 20 + 10 * place for place, word in enumerate(_TENS)}
ORDINAL = {word: value for value, word in enumerate(_ORDINALS)} | {
    word[:-1] + "ieth": value for word, value in TENS.items()
}
SCALES = {
    "thousand": 10**3, "k": 10**3, "million": 10**6, "mn": 10**6, "billion": 10**9,
    "bn": 10**9, "trillion": 10**12,
}  # fmt: skip
FIGURE = re.compile(r"[+-]?\d+(?:\.\d+)?$")

_UNIT_NAMES = """
kilometer km kms|meter m|centimeter cm|millimeter mm|micrometer µm um|nanometer nm|mile mi
yard yd yds|foot ft feet|inch inches|kilogram kg kgs kilo kilos|gram g gm|milligram mg
microgram µg mcg ug|pound lb lbs|ounce oz|tonne|ton|stone|liter l L|milliliter ml millilitre mL
centiliter cl|gallon gal|pint|quart|cup|tablespoon tbsp|teaspoon tsp|second s sec secs
millisecond ms|minute min mins|hour h hr hrs|day|week wk wks|month|year yr yrs|decade|century
celsius °c|fahrenheit °f|kelvin|byte|bit|kilobyte kB KB|megabyte MB|gigabyte GB|terabyte TB
kilobit kb kbit|megabit Mb Mbit|gigabit Gb Gbit|hertz Hz|kilohertz kHz|megahertz MHz
gigahertz GHz|watt W|kilowatt kW|milliwatt mW|megawatt MW|gigawatt GW|kilowatt-hour kWh|volt V
ampere amp A|milliampere mA|ohm Ω|joule J|kilojoule kJ|calorie cal|kilocalorie kcal|newton N
pascal Pa|bar|psi|km/h kph kmh|mph|m/s|hectare ha|acre|degree °|percent %|mol|ppm|rpm|decibel dB
"""
UNIT: dict[str, str] = {}
for _group in _UNIT_NAMES.replace("\n", "|").strip("|").split("|"):
    for _name in _group.split():
        UNIT[_name] = _group.split()[0]
UNIT |= {f"{name[:-2]}re": name for name in set(UNIT.values()) if name.endswith("er")}
UNIT |= {f"{name}s": value for name, value in list(UNIT.items()) if len(name) > 3}
UNITS = frozenset(UNIT.values())
SYMBOLS = frozenset(name for name in UNIT if len(name) == 1)
BARE = frozenset(name for name in UNIT if len(name) > 3 and name.isalpha() and name.islower())
"""Units that are units without a number before them, too: "g" alone is a letter."""

CURRENCY = {
    "$": "usd", "us$": "usd", "dollar": "usd", "dollars": "usd", "€": "eur", "euro": "eur",
    "euros": "eur", "£": "gbp", "¥": "jpy", "yen": "jpy", "₹": "inr", "rupee": "inr",
    "rupees": "inr", "₩": "krw", "won": "won", "a$": "aud", "au$": "aud", "c$": "cad",
    "ca$": "cad", "kr": "kr", "₽": "rub", "₿": "btc", "bitcoin": "btc", "cent": "cent",
    "cents": "cent", "franc": "franc", "francs": "franc", "kronor": "krona", "krona": "krona",
    "peso": "peso", "pesos": "peso",
}  # fmt: skip
CODES = words(
    "usd eur gbp jpy inr krw aud cad chf sek nok dkk cny brl mxn zar rub try pln czk huf btc eth"
)
CURRENCIES = CODES | frozenset(CURRENCY.values())


def is_numeral(word: str) -> bool:
    """Whether a word alone is a number: not "hundred" in "the hundred", but as a part."""
    return _kind(word) is not None


def figure(digits: str, money: bool = False) -> str:
    """The digits without grouping; of money without empty cents."""
    plain = digits.replace(",", "")
    return plain.removesuffix(".00") if money else plain


def scaled(digits: str, word: str) -> str:
    """1.5 and "million" -> 1500000."""
    return format((Decimal(digits) * SCALES[word]).normalize(), "f")


def numeral(tokens: Sequence[str], start: int) -> tuple[str, int] | None:
    """The number written out at `start` and how many words it takes: "twenty one" -> ("21", 2)."""
    total = current = 0
    position, last = start, ""
    while position < len(tokens):
        word = tokens[position]
        joins = word == "and" and last in ("hundred", "thousand") and position + 1 < len(tokens)
        if joins and tokens[position + 1] in _CARDINAL:
            position += 1
            continue
        kind = _kind(word)
        if kind is None or not _may_follow(last, kind):
            break
        if kind == "ordinal":
            return f"{total + current + ORDINAL[word]}th", position + 1 - start
        if kind == "hundred":
            current = max(current, 1) * 100
        elif kind == "thousand":
            total, current = total + max(current, 1) * SCALES[word], 0
        else:
            current += UNITS_OF_TEN.get(word, TENS.get(word, 0))
        position, last = position + 1, kind
    return (str(total + current), position - start) if position > start else None


_CARDINAL = frozenset(UNITS_OF_TEN) | frozenset(TENS)


def _kind(word: str) -> str | None:
    if word in UNITS_OF_TEN:
        return "unit"
    if word in TENS:
        return "ten"
    if word in ("hundred", "thousand"):
        return word
    if word in ("million", "billion", "trillion"):
        return "thousand"
    return "ordinal" if word in ORDINAL else None


def _may_follow(last: str, kind: str) -> bool:
    """ "twenty one" is one number, "one twenty" and "two three" are two."""
    return {
        "": kind in ("unit", "ten", "ordinal"),
        "unit": kind in ("hundred", "thousand"),
        "ten": kind in ("unit", "thousand", "ordinal"),
        "hundred": kind in ("unit", "ten", "thousand", "ordinal"),
        "thousand": kind in ("unit", "ten", "ordinal"),
    }[last]
