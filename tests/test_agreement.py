import pytest

from pipelines.agreement import AGREEMENT


@pytest.mark.parametrize(
    ("kind", "cached", "fresh", "same"),
    [
        ("exact", "Paris", "Paris", True),
        ("exact", "Paris", "paris", False),
        ("normalized", "Paris.", " PARIS", True),
        ("normalized", "a  b\n", "A b!", True),
        ("normalized", "５ kg", "5 kg", True),
        ("normalized", "it's -5", "it's 5", False),
        ("normalized", "yes", "no", False),
        ("normalized", "", "", True),
        ("numeric", "The answer is 1,234.50.", "1234.5", True),
        ("numeric", "so 12 + 3 = 15", "15", True),
        ("numeric", "-5", "5", False),
        ("numeric", "no number", "5", False),
        ("numeric", "none", "None.", True),
        ("json", '{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ("json", '{"a": 1}', '{"a": true}', False),
        ("json", '{"a": 1', '{"a": 1', True),
        ("json", '{"a": 1', '{"a": 1}', False),
    ],
)
def test_answers_agree_by_the_kind_that_is_asked_for(
    kind: str, cached: str, fresh: str, same: bool
) -> None:
    assert AGREEMENT[kind](cached, fresh) is same
    assert AGREEMENT[kind](fresh, cached) is same
