"""Grades that a route goes by: of prompts before they are answered, or of the cheap answers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jobs.route_quality import text_of_answer
from jobs.route_sampling import Answered, Line, ask
from pipelines.calibrated_config import Calibrated, CertifiedCascade, CertifiedGatekeeper
from pipelines.cascade import CUT_SHORT
from pipelines.config import RunConfig
from pipelines.judging import grade_in, grade_of_answer, grade_of_prompt
from pipelines.requests import Request


def graded(
    config: RunConfig, route: Calibrated, answered: Sequence[Answered], divert_stderr: bool
) -> tuple[list[Answered], int]:
    """The rows with what the grading tier says to them, and what it costs in nano-dollars; as they
    are where the route asks for no grades.

    Args:
        answered: rows of which no two have the same key.
    """
    lines = [line for row in answered if (line := _question(route, row))]
    if not lines:
        return list(answered), 0
    replies, summary = ask(config, lines[0].tier, lines, "grades", divert_stderr)
    rows = [replace(row, grade=replies.get(row.sampled.key)) for row in answered]
    return rows, summary.bill_nusd


def doubt_by_grade(route: Calibrated, row: Answered) -> float:
    """Higher where the strong tier gains more; infinite where there is no grade."""
    grade = grade_in(text_of_answer(row.grade)) if row.grade else None
    if grade is None:
        return np.inf
    # A prompt's grade says how hard it is, an answer's how right.
    return grade if isinstance(route, CertifiedGatekeeper) else -grade


def is_full(row: Answered) -> bool:
    """Whether the cheap tier's answer is one that a cascade may take."""
    return text_of_answer(row.cheap) is not None and row.cheap["finish_reason"] != CUT_SHORT


def _question(route: Calibrated, row: Answered) -> Line | None:
    match route:
        case CertifiedGatekeeper():
            asked = grade_of_prompt(route.guide, row.sampled.request)
            return _line(row, route.tier, asked)
        case CertifiedCascade() if route.verifier is not None and is_full(row):
            answer = text_of_answer(row.cheap) or ""
            asked = grade_of_answer(route.verifier.guide, row.sampled.request, answer)
            return _line(row, route.verifier.tier, asked)
        case _:
            return None


def _line(row: Answered, tier: str, asked: Request) -> Line:
    return Line(row.sampled.key, tier, asked.messages, asked.sampling)
