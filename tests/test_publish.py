import math

import pytest

from pipelines.distill_config import Publish
from pipelines.publish import BF16, PTQ, STUDENT, Measured, judge, kl_closed


def found(kl: float, score: float | None = None) -> Measured:
    return Measured(kl=kl, top1=0.9, score=score, rows=10, labelled=0 if score is None else 10)


@pytest.mark.parametrize(
    ("ptq", "student", "margin", "leaves"),
    [
        (0.10, 0.05, 0.1, True),
        (0.10, 0.0900, 0.1, True),
        (0.10, 0.0901, 0.1, False),
        (0.10, 0.10, 0.0, False),
        (0.10, 0.12, 0.1, False),
        (0.10, math.nan, 0.1, False),
        (0.10, math.inf, 0.1, False),
    ],
)
def test_the_student_leaves_only_below_plain_quantization_by_the_margin(
    ptq: float, student: float, margin: float, leaves: bool
) -> None:
    measured = {BF16: found(0.01), PTQ: found(ptq), STUDENT: found(student)}
    assert judge(measured, Publish(min_kl_margin=margin)).publish is leaves


@pytest.mark.parametrize(
    ("whole", "student", "points", "leaves"),
    [
        (0.90, 0.90, 0.0, True),
        (0.90, 0.95, 0.0, True),
        (0.90, 0.89, 1.0, True),
        (0.90, 0.88, 1.0, False),
        (None, None, 1.0, True),
    ],
)
def test_the_student_leaves_only_if_it_loses_few_points(
    whole: float | None, student: float | None, points: float, leaves: bool
) -> None:
    measured = {BF16: found(0.0, whole), PTQ: found(1.0), STUDENT: found(0.1, student)}
    assert judge(measured, Publish(max_score_loss_points=points)).publish is leaves


def test_the_verdict_names_the_figures_that_decided() -> None:
    measured = {BF16: found(0.0, 0.9), PTQ: found(0.2, 0.8), STUDENT: found(0.19, 0.7)}
    says = " ".join(condition.says for condition in judge(measured, Publish()).conditions)
    for figure in ("0.19000", "0.18000", "0.20000", "70.0 %", "20.0 points", "90.0 %"):
        assert figure in says


def test_kl_closed_is_the_share_that_training_removed() -> None:
    measured = {BF16: found(0.0), PTQ: found(0.2), STUDENT: found(0.05)}
    assert kl_closed(measured) == pytest.approx(0.75)
