"""How good both tiers' answers to a sample are: what a route is fitted to and certified by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from actors.embedder import Embedder
from jobs.route_sampling import Answer, Answered, Line, ask, is_own
from pipelines.agreement import AGREEMENT
from pipelines.calibrated_config import ByJudge, ByLabels, BySimilarity, ByStrong, Quality
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.judging import Better, better_answer, better_in


@dataclass(frozen=True)
class Qualities:
    """Attributes:
    cheap, strong: of each row's two answers, from 0 to 1; of shape (rows,).
    cost_nusd: what judging has cost.
    """

    cheap: np.ndarray
    strong: np.ndarray
    cost_nusd: int = 0


def qualities(
    config: RunConfig, measure: Quality, answered: Sequence[Answered], divert_stderr: bool
) -> Qualities:
    """A row without an answer has no quality.

    Raises:
        UsageProblem: the budget ended before all pairs were judged.
    """
    match measure:
        case ByJudge():
            return _by_judge(config, measure, answered, divert_stderr)
        case BySimilarity():
            return _by_similarity(measure, answered)
        case _:
            return _by_text(measure, answered)


def text_of_answer(answer: Answer) -> str | None:
    return answer["response"] if answer["status"] == "ok" else None


def _by_text(measure: ByLabels | ByStrong, answered: Sequence[Answered]) -> Qualities:
    agree = AGREEMENT[measure.compare]
    right = _right_answers(answered, isinstance(measure, ByLabels))

    def of(texts: Sequence[str | None]) -> np.ndarray:
        pairs = zip(right, texts, strict=True)
        return np.array([a is not None and b is not None and agree(a, b) for a, b in pairs], float)

    return Qualities(of(_texts(answered, "cheap")), of(_texts(answered, "strong")))


def _by_similarity(measure: BySimilarity, answered: Sequence[Answered]) -> Qualities:
    cheap, strong = _texts(answered, "cheap"), _texts(answered, "strong")
    right = _right_answers(answered, measure.column is not None)
    texts = sorted({text for text in (*cheap, *strong, *right) if text is not None})
    vectors = dict(zip(texts, Embedder(measure.embedding).embed(texts), strict=True))

    def means_the_same(a: str | None, b: str | None) -> bool:
        # Equal texts are the same, however their vectors round.
        if a is None or b is None or a == b:
            return a is not None and b is not None
        return float(vectors[a] @ vectors[b]) >= measure.at_least

    pairs = [zip(right, texts, strict=True) for texts in (cheap, strong)]
    found = [np.array([means_the_same(a, b) for a, b in pair], float) for pair in pairs]
    return Qualities(found[0], found[1])


def _by_judge(
    config: RunConfig, measure: ByJudge, answered: Sequence[Answered], divert_stderr: bool
) -> Qualities:
    """1 for an answer that is not worse. Equal answers need no judge; where it gives no verdict,
    the strong answer counts as the better one.

    Raises:
        UsageProblem: the judge could not be reached.
    """
    lines = list(_questions(measure, answered))
    replies, cost = dict[str, Answer](), 0
    if lines:
        replies, summary = ask(config, measure.tier, lines, "judge", divert_stderr)
        cost = summary.bill_nusd
        _check_judge(measure.tier, list(replies.values()))
    cheap, strong = np.zeros(len(answered)), np.zeros(len(answered))
    for i, row in enumerate(answered):
        texts = text_of_answer(row.cheap), text_of_answer(row.strong)
        verdict: Better | None = "neither"
        if None in texts:
            verdict = "first" if texts[0] else "second" if texts[1] else None
        elif texts[0] != texts[1]:
            said = [replies.get(_name(row, order)) for order in _ORDERS]
            straight, swapped = (better_in(text_of_answer(r)) if r else None for r in said)
            # Nobody has said that the cheap answer will do.
            verdict = _survives(straight, swapped) if straight and swapped else "second"
        cheap[i] = verdict in ("first", "neither")
        strong[i] = verdict in ("second", "neither")
    return Qualities(cheap, strong, cost)


def _check_judge(tier: str, replies: Sequence[Answer]) -> None:
    lost = sum(not is_own(reply) for reply in replies)
    if lost > _MOST_LOST * len(replies):
        raise UsageProblem(
            f"route.quality.tier: {tier} could not be reached for {lost:,} of {len(replies):,} "
            "judgements; run the same command again once it answers"
        )


_MOST_LOST = 0.05
_ORDERS = ("cheap-first", "strong-first")


def _questions(measure: ByJudge, answered: Sequence[Answered]) -> Iterator[Line]:
    """Both orders of each pair of answers that differ, each pair once."""
    seen = set[str]()
    for row in answered:
        cheap, strong = text_of_answer(row.cheap), text_of_answer(row.strong)
        if cheap is None or strong is None or cheap == strong or row.sampled.key in seen:
            continue
        seen.add(row.sampled.key)
        for order, pair in zip(_ORDERS, ((cheap, strong), (strong, cheap)), strict=True):
            asked = better_answer(measure.guide, row.sampled.request, *pair)
            yield Line(_name(row, order), measure.tier, asked.messages, asked.sampling)


def _survives(straight: Better, swapped: Better) -> Better:
    """A verdict for the cheap answer (first) or the strong one that does not follow the order."""
    if (straight, swapped) == ("first", "second"):
        return "first"
    return "second" if (straight, swapped) == ("second", "first") else "neither"


def _name(row: Answered, order: str) -> str:
    return f"{row.sampled.key}-{order}"


def _right_answers(answered: Sequence[Answered], are_labels: bool) -> list[str | None]:
    return [a.sampled.label for a in answered] if are_labels else _texts(answered, "strong")


def _texts(answered: Sequence[Answered], tier: str) -> list[str | None]:
    return [text_of_answer(getattr(a, tier)) for a in answered]
