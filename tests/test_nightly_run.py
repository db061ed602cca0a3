"""Whole nights: real runs on real files, the time as an argument."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from conftest import MakeConfig, tier, write_jsonl

from jobs.cli import main
from jobs.nightly import Report, nightly
from jobs.webhook import post
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.nightly_config import Webhook

pytestmark = pytest.mark.usefixtures("ray_here")

ROWS = [{"id": str(i), "prompt": f"p{i}"} for i in range(3)]
START = "2026-01-01"


def at(text: str) -> Callable[[], datetime]:
    return lambda: datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
def dated_config(tmp_path: Path, make_config: MakeConfig) -> Callable[..., RunConfig]:
    """A nightly by date over `in/DATE.jsonl`; keyword arguments go into its section."""

    def make(sections: dict[str, Any] | None = None, **fields: Any) -> RunConfig:
        by = {"by": "date", "start": START, "late_after_h": 6}
        return make_config(
            [],
            **{
                "input": {"path": str(tmp_path / "in/{date}.jsonl")},
                "output": {"path": str(tmp_path / "out/{date}")},
                "nightly": {"partitions": by, **fields},
                **(sections or {}),
            },
        )

    return make


def give(tmp_path: Path, *names: str, rows: list[dict[str, Any]] = ROWS) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    for name in names:
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", rows)


def answered(report: Report) -> list[tuple[str, int]]:
    return [(run.partition, run.exit_code) for run in report.runs]


def test_missed_nights_are_caught_up_in_order_and_a_second_call_does_nothing(
    tmp_path: Path, dated_config: Callable[..., RunConfig]
) -> None:
    give(tmp_path, "2026-01-02", "2026-01-01", "2026-01-03")
    config = dated_config(sections={"response_cache": {"path": str(tmp_path / "cache")}})
    first = nightly(config, at("2026-01-03T01:00"))
    assert answered(first) == [("2026-01-01", 0), ("2026-01-02", 0)]
    assert (first.exit_code, first.warnings) == (0, [])
    assert json.loads((tmp_path / "out/2026-01-02/summary.json").read_text())["ok"] == 3
    second = nightly(config, at("2026-01-03T01:00"))
    assert (second.runs, second.due, second.exit_code) == ([], [], 0)


def test_a_failed_night_holds_back_the_next_unless_told_otherwise(
    tmp_path: Path, dated_config: Callable[..., RunConfig]
) -> None:
    give(tmp_path, "2026-01-01", rows=[ROWS[0], ROWS[0]])
    give(tmp_path, "2026-01-02")
    stopped = nightly(dated_config(), at("2026-01-03T01:00"))
    assert answered(stopped) == [("2026-01-01", 1)]
    assert stopped.left == ["2026-01-02"]
    assert "id" in str(stopped.runs[0].trouble)
    went_on = nightly(dated_config(after_failure="go_on"), at("2026-01-03T01:00"))
    assert answered(went_on) == [("2026-01-01", 1), ("2026-01-02", 0)]
    assert went_on.exit_code == 1


def test_an_absent_input_is_waited_for_then_late_and_answered_when_it_comes(
    tmp_path: Path, dated_config: Callable[..., RunConfig]
) -> None:
    give(tmp_path, "2026-01-02")
    early = nightly(dated_config(), at("2026-01-02T05:59"))
    assert (early.waiting, early.exit_code) == (["2026-01-01"], 0)
    late = nightly(dated_config(), at("2026-01-03T01:00"))
    assert (late.late, answered(late), late.exit_code) == (["2026-01-01"], [("2026-01-02", 0)], 1)
    give(tmp_path, "2026-01-01")
    assert answered(nightly(dated_config(), at("2026-01-03T02:00"))) == [("2026-01-01", 0)]


def test_rows_in_errors_and_a_reached_budget_have_their_exit_codes(
    tmp_path: Path, dated_config: Callable[..., RunConfig]
) -> None:
    give(tmp_path, "2026-01-01", rows=[*ROWS, {"id": "x", "prompt": ""}])
    give(tmp_path, "2026-01-02", "2026-01-03")
    done = nightly(dated_config(), at("2026-01-02T01:00"))
    assert (answered(done), done.exit_code) == ([("2026-01-01", 3)], 3)
    poor = nightly(dated_config({"budget_usd": 1e-9}), at("2026-01-04T01:00"))
    assert answered(poor) == [("2026-01-02", 4)]
    assert (poor.left, poor.exit_code) == (["2026-01-03"], 4)


def test_a_dry_run_writes_nothing(tmp_path: Path, dated_config: Callable[..., RunConfig]) -> None:
    give(tmp_path, "2026-01-01")
    report = nightly(dated_config(), at("2026-01-02T01:00"), dry_run=True)
    assert (report.due, report.runs) == (["2026-01-01"], [])
    assert not (tmp_path / "out").exists()


def test_a_call_while_another_is_at_work_does_nothing_and_says_so(
    tmp_path: Path, dated_config: Callable[..., RunConfig]
) -> None:
    give(tmp_path, "2026-01-01")
    config = dated_config()
    lock = tmp_path / "out/.nightmill/lock.json"
    lock.parent.mkdir(parents=True)
    elsewhere = {"host": "elsewhere", "pid": 1, "time": datetime.now(UTC).timestamp()}
    lock.write_text(json.dumps(elsewhere))
    (lock.parent / "running.json").write_text('{"partition": "2026-01-01"}')
    report = nightly(config, at("2026-01-02T01:00"))
    assert (report.runs, report.exit_code) == ([], 0)
    assert "2026-01-01 is being answered" in str(report.busy)
    lock.write_text(json.dumps({**elsewhere, "time": 0}))
    assert answered(nightly(config, at("2026-01-02T01:00"))) == [("2026-01-01", 0)]
    assert not lock.exists()


def test_the_lock_is_held_while_a_night_runs(
    tmp_path: Path, dated_config: Callable[..., RunConfig]
) -> None:
    give(tmp_path, "2026-01-01")
    lock = tmp_path / "out/.nightmill/lock.json"
    seen: list[bool] = []
    nightly(dated_config(), at("2026-01-02T01:00"), say=lambda _: seen.append(lock.exists()))
    assert seen == [True, True]


def test_retention_removes_only_what_a_nightly_made_and_it_stays_answered(
    tmp_path: Path, dated_config: Callable[..., RunConfig]
) -> None:
    give(tmp_path, "2026-01-01", "2026-01-02")
    nightly(dated_config(), at("2026-01-03T01:00"))
    (tmp_path / "out/2026-01-01/notes.txt").write_text("mine")
    (tmp_path / "out/2026-01-02/nightly.json").unlink()  # as if a plain run had made it
    config, later = dated_config(keep_days=30), at("2026-02-03T01:00")
    gone = tmp_path / "out/2026-01-01"
    assert nightly(config, later, dry_run=True).removed == [str(gone)]
    assert (gone / "rows").exists()
    report = nightly(config, later)
    assert report.removed == [str(gone)]
    assert sorted(p.name for p in gone.iterdir() if not p.name.startswith(".")) == [
        "nightly.json",
        "notes.txt",
        "summary.json",
    ]
    assert (tmp_path / "out/2026-01-02/rows").exists()
    again = nightly(config, later)
    assert (again.runs, again.removed) == ([], [])
    assert "2026-01-01" not in [*again.due, *again.late]


def test_an_output_that_something_else_made_is_left_alone(
    tmp_path: Path, dated_config: Callable[..., RunConfig]
) -> None:
    give(tmp_path, "2026-01-01")
    foreign = tmp_path / "out/2026-01-01/thesis.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("x")
    report = nightly(dated_config(), at("2026-01-02T01:00"))
    assert "holds files that no nightly run made" in str(report.runs[0].trouble)
    assert [p.name for p in foreign.parent.iterdir()] == ["thesis.txt"]


def test_files_not_yet_answered_get_an_output_each(tmp_path: Path, make_config: MakeConfig) -> None:
    give(tmp_path, "a")
    config = make_config(
        [],
        input={"path": str(tmp_path / "in")},
        output={"path": str(tmp_path / "out/{file}")},
        nightly={"partitions": {"by": "file"}},
    )

    def soon() -> datetime:
        return datetime.now(UTC) + timedelta(hours=1)

    assert nightly(config, lambda: datetime.now(UTC)).runs == []
    first = nightly(config, soon)
    assert answered(first) == [("a.jsonl", 0)]
    give(tmp_path, "a", rows=ROWS[:1])
    give(tmp_path, "c")
    second = nightly(config, soon)
    assert (second.changed, answered(second)) == (["a.jsonl"], [("c.jsonl", 0)])
    assert second.exit_code == 1


@contextmanager
def receiver(*codes: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server that answers with these codes in turn, and what it was sent."""
    got: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(codes[min(len(got), len(codes)) - 1])
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/SECRET", got
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("codes", "posts", "told"),
    [((200,), 1, None), ((503, 200), 2, None), ((403,), 1, "403"), ((302,), 1, "302")],
)
def test_a_webhook_is_tried_again_where_that_helps(
    monkeypatch: pytest.MonkeyPatch, codes: tuple[int, ...], posts: int, told: str | None
) -> None:
    with receiver(*codes) as (url, got):
        monkeypatch.setenv("HOOK", url)
        trouble = post(Webhook(url_env="HOOK", deadline_s=5), {"text": "x"})
    assert got == [{"text": "x"}] * posts
    assert trouble == (told and f"it answered {told}")


def test_a_webhook_that_cannot_be_reached_or_read_is_told_without_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", "http://127.0.0.1:9/SECRET")
    gone = str(post(Webhook(url_env="HOOK", deadline_s=0.2), {}))
    assert "could not be reached" in gone
    assert "SECRET" not in gone
    assert "could not be read" in str(post(Webhook(url_file=str(tmp_path / "nope")), {}))
    monkeypatch.setenv("HOOK", "SECRET")
    assert post(Webhook(url_env="HOOK"), {}) == "its address is no http(s) URL"


def test_the_webhook_hears_of_a_night_and_cannot_fail_it(
    tmp_path: Path, dated_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(tmp_path, "2026-01-01")
    config = dated_config(webhook={"url_env": "HOOK"})
    with receiver(403) as (url, got):
        monkeypatch.setenv("HOOK", url)
        report = nightly(config, at("2026-01-02T01:00"))
        assert "2026-01-01: 3 of 3 rows answered" in got[0]["text"]
        assert got[0]["nightly"]["runs"][0]["summary"]["ok"] == 3
        assert (report.exit_code, report.warnings) == (0, ["webhook: it answered 403"])
        nightly(config, at("2026-01-02T01:00"))
        assert len(got) == 1, "a call that did nothing told somebody"


def test_the_command_line(tmp_path: Path) -> None:
    give(tmp_path, "2026-01-01")
    raw = {
        "input": {"path": str(tmp_path / "in/{date}.jsonl")},
        "output": {"path": str(tmp_path / "out/{date}")},
        "tiers": [tier("only")],
        "route": {"policy": "fixed", "tier": "only"},
        "nightly": {"partitions": {"by": "date", "start": START}},
    }
    path = tmp_path / "n.yaml"
    path.write_text(yaml.safe_dump(raw))

    def call(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, list(arguments))
        return done.exit_code, done.output

    code, text = call("nightly", str(path), "--until", START, "--dry-run")
    assert code == 0
    assert "due, not begun          2026-01-01" in text
    code, text = call("nightly", str(path), "--until", START, "--json")
    assert code == 0
    assert '"partition": "2026-01-01"' in text
    assert "nothing due" in call("nightly", str(path), "--until", START)[1]
    code, text = call("run", str(path))
    assert code == 2
    code, _ = call("nightly", str(path), "--set", "nightly.partitions.timezone=Nowhere")
    assert code == 2
    code, _ = call("nightly", str(path), "--until", "tomorrow")
    assert code == 2


def test_until_needs_days(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(
        [],
        input={"path": str(tmp_path / "in")},
        output={"path": str(tmp_path / "out/{file}")},
        nightly={"partitions": {"by": "file"}},
    )
    with pytest.raises(UsageProblem, match="by date"):
        nightly(config, at("2026-01-02T01:00"), until=date(2026, 1, 1))
