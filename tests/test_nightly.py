"""Which partitions are due, as values: no files, no clock."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from conftest import MakeConfig

from pipelines.errors import UsageProblem
from pipelines.nightly import (
    Evidence,
    InputFileSeen,
    Partition,
    daily_partitions,
    day_begins,
    file_partitions,
    judge,
)
from pipelines.nightly_config import ByDate, ByFile
from pipelines.path_template import check_templates, dated, fixed_folder

ABSENT, PRESENT = Evidence(False, False), Evidence(True, False)
ANSWERED = Evidence(True, True)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def days(zone: str, start: str, now: str, **fields: float) -> list[Partition]:
    config = ByDate(by="date", start=date.fromisoformat(start), timezone=zone, **fields)
    return list(daily_partitions(config, "in/{date:%Y/%m/%d}", "out/{date}", at(now)))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Europe/Berlin", "2026-06-01", 24),
        ("Africa/Cairo", "2024-04-26", 23),  # has no midnight
        ("America/Havana", "2025-11-02", 25),  # has two
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("Pacific/Apia", "2011-12-30", 0),  # never was
    ],
)
def test_a_day_is_as_long_as_its_zone_says(zone: str, day: str, hours: float) -> None:
    begins = day_begins(date.fromisoformat(day), ZoneInfo(zone))
    ends = day_begins(date.fromisoformat(day) + timedelta(days=1), ZoneInfo(zone))
    assert ends - begins == timedelta(hours=hours)


def test_a_day_that_never_was_is_no_partition() -> None:
    found = days("Pacific/Apia", "2011-12-29", "2012-01-01T12:00")
    assert [p.name for p in found] == ["2011-12-29", "2011-12-31", "2012-01-01"]


@pytest.mark.parametrize(
    ("now", "last"),
    [("2026-03-29T23:59", "2026-03-28"), ("2026-03-30T00:00", "2026-03-29")],
)
def test_a_day_is_due_the_stated_hours_after_it_ended(now: str, last: str) -> None:
    """2026-03-29 ends in Berlin at 22:00 UTC, in summer time."""
    found = days("Europe/Berlin", "2026-03-01", now, ready_after_h=2)
    assert found[-1].name == last


def test_paths_name_the_day() -> None:
    (only,) = days("UTC", "2026-01-02", "2026-01-03T00:00")
    assert (only.input, only.output) == ("in/2026/01/02", "out/2026-01-02")


def test_gaps_are_due_oldest_first_and_what_is_awaited_holds_back_what_follows() -> None:
    found = days("UTC", "2026-01-01", "2026-01-05T01:00", late_after_h=30)
    seen = [ABSENT, ANSWERED, ABSENT, PRESENT]
    evidence = {p.name: e for p, e in zip(found, seen, strict=True)}
    judged = judge(found, evidence, at("2026-01-05T01:00"))
    assert [j.standing for j in judged] == ["late", "answered", "waiting", "blocked"]
    later = judge(found, evidence, at("2026-01-07T00:00"))
    assert [j.standing for j in later] == ["late", "answered", "late", "due"]


def test_a_file_is_due_once_it_has_not_changed_for_a_while() -> None:
    files = [
        InputFileSeen("b.jsonl", "in/b.jsonl", at("2026-01-01T10:00"), "v1"),
        InputFileSeen("a.jsonl", "in/a.jsonl", at("2026-01-01T11:00"), "v1"),
        InputFileSeen("c.jsonl", "in/c.jsonl", at("2026-01-01T11:59"), "v1"),
    ]
    config = ByFile(by="file", settled_after_h=0.5)
    found = list(file_partitions(config, "out/{file}", files, at("2026-01-01T12:00")))
    assert [p.output for p in found] == ["out/b.jsonl", "out/a.jsonl"]


def test_an_answered_file_that_changed_is_told_and_one_that_is_gone_is_not() -> None:
    files = [InputFileSeen("a", "in/a", at("2026-01-01T00:00"), "v2")]
    now = at("2026-01-02T00:00")
    found = list(file_partitions(ByFile(by="file"), "out/{file}", files, now))
    assert judge(found, {"a": Evidence(True, True, "v1")}, now)[0].standing == "changed"
    assert judge(found, {"a": Evidence(True, True, "v2")}, now)[0].standing == "answered"


def by_date(**fields: object) -> dict[str, object]:
    return {"partitions": {"by": "date", "start": "2026-01-01", **fields}}


@pytest.mark.parametrize(
    ("source", "output", "nightly", "told"),
    [
        ("in/{date}", "out/{date:%Y-%m}", by_date(), "output.path: out/{date:%Y-%m}: is the same"),
        ("in", "out/{date}", by_date(), "input.path: in: is the same"),
        ("in/{date:%d-%j}", "out/{date}", by_date(), "is the same"),
        ("in/{date}", "out/{date}/{file}", by_date(), "only {date} may stand in braces"),
        ("in/{day}", "out/{date}", by_date(), "input.path: in/{day}: only {date}"),
        ("in/{date}", "out/{file}", {"partitions": {"by": "file"}}, "no template"),
        ("in", "out/x-{file}", {"partitions": {"by": "file"}}, "must end in /{file}"),
        ("in", "out", None, "nightly: is missing"),
    ],
)
def test_paths_that_two_partitions_could_share_are_refused(
    make_config: MakeConfig, source: str, output: str, nightly: object, told: str
) -> None:
    config = make_config([], input={"path": source}, output={"path": output}, nightly=nightly)
    with pytest.raises(UsageProblem) as problem:
        check_templates(config)
    assert told in str(problem.value)


def test_a_template_may_name_a_day_several_times() -> None:
    day = date(2026, 2, 3)
    assert dated("s3://b/{date:%Y}/{date:%m-%d}/x*.jsonl", day) == "s3://b/2026/02-03/x*.jsonl"


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("s3://b/out/{date}", "s3://b/out"),
        ("out/night-{date}", "out"),
        ("/{file}", "/"),
        ("{date}", "."),
    ],
)
def test_nightlies_of_one_output_meet_in_one_folder(path: str, folder: str) -> None:
    assert fixed_folder(path) == folder


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "../etc/passwd"])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        ByDate(by="date", start=date(2026, 1, 1), timezone=zone)
