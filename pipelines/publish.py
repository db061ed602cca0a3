"""The publish gate: a student leaves only if training it was worth more than rounding it."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.distill_config import Publish

BF16, PTQ, STUDENT = "bf16", "mse", "student"


@dataclass(frozen=True)
class Measured:
    """One variant of the student on the held-out test rows.

    Attributes:
        kl: mean divergence from the teacher per answer token, in nats.
        top1: share of answer tokens where its likeliest token is the teacher's.
        score: share of labelled rows answered exactly right; None without labels.
        rows: how many rows `kl` and `top1` are over; `labelled` the same for `score`.
    """

    kl: float
    top1: float
    score: float | None
    rows: int
    labelled: int


@dataclass(frozen=True)
class Condition:
    """One condition of the gate: what it asked, what was found."""

    holds: bool
    says: str


@dataclass(frozen=True)
class Verdict:
    conditions: tuple[Condition, ...]

    @property
    def publish(self) -> bool:
        return all(condition.holds for condition in self.conditions)


def judge(measured: Mapping[str, Measured], gate: Publish) -> Verdict:
    """Whether the student is good enough.

    Args:
        measured: at least the unquantized student, PTQ with MSE scales and the student.
    """
    return Verdict((_kl(measured, gate), _score(measured, gate)))


def _kl(measured: Mapping[str, Measured], gate: Publish) -> Condition:
    student, plain = measured[STUDENT].kl, measured[PTQ].kl
    limit = (1 - gate.min_kl_margin) * plain
    # A KL that is not a number is never below.
    holds = student < plain and student <= limit
    return Condition(
        holds,
        f"KL {student:.5f}; at most {limit:.5f} was asked for: {100 * gate.min_kl_margin:g} % "
        f"below post-training quantization's {plain:.5f}",
    )


def _score(measured: Mapping[str, Measured], gate: Publish) -> Condition:
    student, whole = measured[STUDENT].score, measured[BF16].score
    if student is None or whole is None:
        return Condition(True, "score: not judged, no held-out row has a label")
    lost = 100 * (whole - student)
    # Scores are fractions of rows; their difference in points carries rounding errors.
    holds = lost <= gate.max_score_loss_points + 1e-9
    return Condition(
        holds,
        f"exact match {100 * student:.1f} %; {max(lost, 0):.1f} points below the unquantized "
        f"student's {100 * whole:.1f} %, where {gate.max_score_loss_points:g} may be lost",
    )


def kl_closed(measured: Mapping[str, Measured]) -> float:
    """The share of post-training quantization's KL that training removed."""
    return 1 - measured[STUDENT].kl / measured[PTQ].kl
