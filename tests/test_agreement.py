import time

import pytest

from pipelines.agreement import AGREEMENT

LONG = "word " * 400_000

CASES: dict[str, list[tuple[str, str, bool]]] = {
    "exact": [
        ("Paris", "Paris", True),
        ("Paris", "paris", False),
        ("Paris", "Paris\n", False),
        ("", "", True),
        ("", "Paris", False),
        (LONG, LONG + "!", False),
    ],
    "normalized": [
        ("Paris.", " paris", True),
        ("**Paris**, of course!", "paris of  course", True),
        ("\uff30\uff41\uff52\uff49\uff53", "Paris", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("cafe", "caf\u00e9", False),
        ("\u201cyes\u201d", '"Yes"', True),
        ("It is 5.", "it is 5", True),
        ("It is -5", "It is 5", False),
        ("It is \u22125", "It is -5", True),
        ("(-5)", "5", False),
        ("1.5", "15", False),
        ("1.5", "1 5", False),
        (".5", "5", False),
        ("10:30", "1030", False),
        ("5%", "5", False),
        ("$5", "\u20ac5", False),
        ("C#", "C", False),
        ("10\u00b2", "102", False),
        ("1\u00bd", "11/2", False),
        ("yes", "no", False),
        ("?!", "...", False),
        ("...", "...", True),
        ("", "", True),
        ("", " ", False),
        ("", "Paris", False),
        (LONG, LONG.upper() + ".", True),
        (LONG, LONG + "more", False),
    ],
    "numeric": [
        ("The answer is 42.", "So we get 42", True),
        ("2 + 2 = 4", "4", True),
        ("#### 1,234", "1234", True),
        ("1,234.50", "1234.5", True),
        ("2,5", "2.5", True),
        ("1,5", "2,5", False),
        ("1e3", "1000", True),
        ("0.3333333", "0.33333331", True),
        ("0.33", "0.3333", False),
        ("1234567", "1234568", False),
        ("1e400", "1e500", False),
        ("1e9999999", "1", False),
        ("1..5", "1..6", False),
        ("0", "0.0", True),
        ("0", "0.0000001", False),
        ("5", "-5", False),
        ("x = \u22125", "-5", True),
        ("5%", "5", False),
        ("5 percent", "5 percent", True),
        ("$5", "5", True),
        ("$5", "\u20ac5", False),
        ("5 million", "5", False),
        ("5 million", "5 million dollars", True),
        ("5km", "5m", False),
        ("5 km", "5 m", False),
        ("5 km", "5km", True),
        ("5 km", "5", True),
        ("5 dollars", "5 euros", False),
        (r"\sqrt{2}", "\u221a2", True),
        ("2x", "2", False),
        ("42 apples", "42", True),
        ("3/4", "1/4", False),
        (r"\boxed{\frac{3}{4}}", r"\frac{1}{4}", False),
        (r"\boxed{\frac{3}{4}}", "3/4", True),
        (r"\sqrt{2}", "2", False),
        ("10^2", "3^2", False),
        ("3 \u00d7 10^5", "4 \u00d7 10^5", False),
        (r"3 \times 10^{5}", "3\u00d710^5", True),
        ("10\u00b2", "10", False),
        ("10:30", "11:30", False),
        ("2024-05-01", "2024-06-01", False),
        ("3-5", "2-5", False),
        ("version 1.2.3", "version 2.2.3", False),
        ("B12", "12", False),
        ("yes", "Yes.", True),
        ("yes", "no", False),
        ("5", "five", False),
        ("", "", True),
        ("", "5", False),
        ("9" * 100_000, "9" * 99_999 + "8", False),
        ("9" * 400_000 + "-1", "9" * 400_000 + "-2", False),
        (LONG + "7", LONG + "7.0", True),
        ("1 " * 400_000, "2", False),
        ("1" + "," * 400_000, "1", True),
    ],
    "json": [
        ('{"a": 1, "b": [2, 3]}', '{"b":[2,3],"a":1.0}', True),
        ('```json\n{"a": 1}\n```', '{"a": 1}', True),
        ("[1, 2]", "[2, 1]", False),
        ("[1]", "[true]", False),
        ("[0]", "[false]", False),
        ('{"a": null}', "{}", False),
        ('"1"', "1", False),
        ("0.1", "0.10", True),
        ("12345678901234567890", "12345678901234567891", False),
        ("1e400", "2e400", False),
        ('{"a": 1, "a": 2}', '{"a": 2}', False),
        ("not json", "not json", True),
        ("not json", "not  json", False),
        ("NaN", "NaN ", False),
        ("", "", True),
        ("", "null", False),
        ("[" * 100_000, "[" * 100_001, False),
        ("[" * 200 + "]" * 200, " " + "[" * 200 + "]" * 200, True),
        ("```json\n" + "\n" * 400_000, "[]", False),
        ("```python\n[]\n```", "[]", False),
        ("9" * 5000, "9" * 5001, False),
        (f'["{LONG}"]', f'[ "{LONG}"]', True),
    ],
}
TABLE = [(kind, *case) for kind, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("kind", "a", "b", "agrees"), TABLE, ids=range(len(TABLE)))
def test_answers_agree_as_the_table_says(kind: str, a: str, b: str, agrees: bool) -> None:
    began = time.monotonic()
    assert AGREEMENT[kind](a, b) is agrees
    assert AGREEMENT[kind](b, a) is agrees
    assert AGREEMENT[kind](a, a)
    assert time.monotonic() - began < 10


def test_every_kind_has_its_cases() -> None:
    assert CASES.keys() == AGREEMENT.keys()
