import shlex

import pytest
from conftest import MakeConfig

from pipelines.config_file import parse_override
from pipelines.submission import (
    Attempt,
    absolute_places,
    attempts_of,
    entry_point,
    next_step,
    own_excludes,
    run_name,
)

ROWS = [{"prompt": "p"}]


def test_a_run_is_named_by_what_it_answers_and_where(make_config: MakeConfig) -> None:
    name = run_name(make_config(ROWS))
    same = make_config(ROWS, budget_usd=5.0, submit={"num_cpus": 1})
    assert run_name(same) == name, "a run with more money is the same run"
    for other in ({"output": {"path": "/elsewhere"}}, {"sampling": {"max_tokens": 5}}):
        assert run_name(make_config(ROWS, **other)) != name


@pytest.mark.parametrize(
    ("attempts", "action", "submission_id"),
    [
        ([], "start", "n"),
        ([Attempt("n", "PENDING")], "follow", "n"),
        ([Attempt("n", "STOPPED"), Attempt("n-2", "RUNNING")], "follow", "n-2"),
        ([Attempt("n", "SUCCEEDED", 0)], "tell", "n"),
        ([Attempt("n", "FAILED", 3)], "tell", "n"),
        ([Attempt("n", "FAILED", 4)], "start", "n-2"),
        ([Attempt("n", "FAILED", 1)], "start", "n-2"),
        ([Attempt("n", "FAILED", None)], "start", "n-2"),
        ([Attempt("n", "STOPPED"), Attempt("n-9", "FAILED", 2)], "start", "n-10"),
        ([Attempt("n", "FAILED", 1), Attempt("n-2", "SUCCEEDED", 0)], "tell", "n-2"),
    ],
)
def test_what_a_submit_does_beside_the_jobs_there_are(
    attempts: list[Attempt], action: str, submission_id: str
) -> None:
    step = next_step("n", attempts)
    assert (step.action, step.attempt.submission_id) == (action, submission_id)


def test_attempts_are_counted_in_order_and_other_jobs_are_not() -> None:
    ids = ["n-10", "n-2", "n", "other", "n-2-x", "nn"]
    found = attempts_of("n", [Attempt(i, "FAILED", 1) for i in ids])
    assert [attempt.submission_id for attempt in found] == ["n", "n-2", "n-10"]


@pytest.mark.parametrize(
    ("status", "exit_code", "ends_with"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 4, 4),
        ("FAILED", 127, 1),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 1),
    ],
)
def test_a_job_ends_as_its_run_and_anything_else_has_failed(
    status: str, exit_code: int | None, ends_with: int
) -> None:
    assert Attempt("n", status, exit_code).run_exit_code == ends_with  # type: ignore[arg-type]


def test_what_a_run_reads_and_writes_stays_where_it_is(make_config: MakeConfig) -> None:
    config = make_config(
        ROWS,
        input={"path": "data/*.parquet"},
        output={"path": "/shared/answers"},
        response_cache={"path": "s3://bucket/cache"},
    )
    assert absolute_places(config, "/home/u") == {"input.path": "/home/u/data/*.parquet"}
    assert own_excludes(config, "/home/u") == ["/data/*.parquet"]
    assert own_excludes(config, "/shared") == ["/data/*.parquet", "/answers"]


def test_a_command_line_says_what_was_said() -> None:
    given = {"output.path": "a: b #c 'd' \"e\"", "tiers.x.replicas": 2, "dedup": False}
    line = shlex.split(entry_point("python", "my run.yaml", given))
    assert line[:5] == ["python", "-m", "jobs.cli", "run", "my run.yaml"]
    assert dict(map(parse_override, line[6::2])) == given
