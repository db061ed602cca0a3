"""What a growing sample tells of a route: both tiers' answers, their quality, what they cost."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from actors.embedder import Embedder
from actors.known_answers import SERVED
from actors.learned_policy import prompt_of
from actors.route_fit import Judged
from jobs.route_grading import doubt_by_grade, graded, is_full
from jobs.route_quality import qualities, text_of_answer
from jobs.route_sampling import Answer, Answered, Sampled, answer
from pipelines.agreement import AGREEMENT
from pipelines.calibrated_config import ByLabels, Calibrated, CertifiedCascade, Learned
from pipelines.certify import Costs
from pipelines.confidence import MEASURES, Measure, confidence
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.prices import NUSD
from pipelines.routing import Candidate
from pipelines.worth import Advice, advise


class Evidence:
    """Of the rows of a sample, as far as it has been asked about.

    A request that stands in the sample twice is asked once, and counts twice.
    """

    def __init__(self, config: RunConfig, route: Calibrated, divert_stderr: bool) -> None:
        self._config, self._route, self._divert = config, route, divert_stderr
        self._answers: dict[str, Answered] = {}
        self._qualities: dict[tuple[str, str | None], tuple[float, float]] = {}
        self._vectors: dict[str, np.ndarray] = {}
        self._rows: list[Answered] = []
        self.spent_nusd = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, sample: Sequence[Sampled]) -> None:
        """Have both tiers answer these rows too, and judge what they say.

        Rows are left out where a tier could not be reached.

        Raises:
            UsageProblem: the budget ends before all is answered and judged.
        """
        new = {s.key: s for s in sample if s.key not in self._answers}
        if new:
            answered, cost = answer(self._left(), self._route, list(new.values()), self._divert)
            self.spent_nusd += cost
            answered, cost = graded(self._left(), self._route, answered, self._divert)
            self.spent_nusd += cost
            self._answers |= {a.sampled.key: a for a in answered}
        rows = [replace(self._answers[sampled.key], sampled=sampled) for sampled in sample]
        reached = [row for row in rows if row.was_reached]
        self._judge(reached)
        self._rows += reached

    def judged(self) -> Judged:
        """The rows so far, as a route is fitted to them."""
        texts = [prompt_of(Candidate(row.sampled.request, {})) for row in self._rows]
        quality = np.array([self._qualities[_judged_as(row)] for row in self._rows])
        held = np.array([row.sampled.held for row in self._rows])
        vectors = self._embedded(texts)
        return Judged(texts, vectors, quality[:, 0], quality[:, 1], self._doubts(), held)

    def costs(self, held: bool) -> Costs:
        """Of each row, in dollars: rows that escalate may well cost more than those that do not.

        Args:
            held: of the rows to certify on; else of those to fit on, by which sampling may end.

        Raises:
            UsageProblem: the strong tier costs nothing.
        """
        rows = [row for row in self._rows if row.sampled.held == held]
        cheap, strong, grade = (
            np.array([_usd(said) for said in answers])
            for answers in zip(*((r.cheap, r.strong, r.grade) for r in rows), strict=True)
        )
        if not strong.any():
            raise UsageProblem(
                "tiers: the strong tier's answers cost nothing, so nothing can be saved"
            )
        # What escalates in a cascade has been answered cheap before; all have been graded.
        first = cheap * isinstance(self._route, CertifiedCascade)
        return Costs(kept=cheap + grade, sent=first + grade + strong, strong=strong)

    def advice(self) -> Advice:
        """Whether this pair of tiers can pay at all."""
        judged, costs = self.judged(), self.costs(held=False)
        kept, strong = (float(np.asarray(c, np.float64).mean()) for c in (costs.kept, costs.strong))
        return advise(judged.cheap, judged.strong, strong / kept if kept else np.inf)

    def difference(self, kept: np.ndarray) -> float:
        """What the strong answer gains, on average, where it differs from the cheap one.

        Args:
            kept: of the rows to certify on, those that stay cheap: booleans.
        """
        if not isinstance(self._route.quality, ByLabels):
            return 1.0
        agree, gains = AGREEMENT[self._route.quality.compare], [1.0]
        held = [row for row in self._rows if row.sampled.held]
        for row, stays in zip(held, kept, strict=True):
            cheap_text, strong_text = text_of_answer(row.cheap), text_of_answer(row.strong)
            if not stays or cheap_text is None or strong_text is None:
                continue
            if not agree(strong_text, cheap_text):
                cheap, strong = self._qualities[_judged_as(row)]
                gains.append(strong - cheap)
        # One that was lost is counted in: few of them prove little.
        return float(np.clip(np.mean(gains), 0.0, 1.0))

    def extra_usd(self) -> float:
        """What a row has cost beyond the strong tier's answer."""
        strong = sum(_usd(answered.strong) for answered in self._answers.values())
        return max(self.spent_nusd / NUSD - strong, 0.0) / len(self._rows)

    def known(self) -> pa.Table:
        """The strong tier's full answers, which are at least as good as what rows would get."""
        rows = [
            {"known_key": key, **{name: a.strong[name] for name in SERVED}}
            for key, a in self._answers.items()
            if a.was_reached and a.strong["status"] == "ok" and a.strong["response"] is not None
        ]
        kinds = {"prompt_tokens": pa.int64(), "completion_tokens": pa.int64()}
        names = ("known_key", *SERVED)
        schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
        return pa.Table.from_pylist(rows, schema=schema)

    def _left(self) -> RunConfig:
        """What is spent is not there for what follows."""
        if self._config.budget_usd is None:
            return self._config
        left = max(self._config.budget_usd - self.spent_nusd / NUSD, 1 / NUSD)
        return self._config.model_copy(update={"budget_usd": left})

    def _judge(self, rows: Sequence[Answered]) -> None:
        new = {_judged_as(row): row for row in rows if _judged_as(row) not in self._qualities}
        if not new:
            return
        fresh = list(new.values())
        found = qualities(self._left(), self._route.quality, fresh, self._divert)
        pairs = zip(found.cheap.tolist(), found.strong.tolist(), strict=True)
        self._qualities |= dict(zip(new, pairs, strict=True))
        self.spent_nusd += found.cost_nusd

    def _embedded(self, texts: Sequence[str]) -> np.ndarray:
        if self._route.embedding is None:
            return np.empty((len(texts), 0), np.float32)
        new = sorted(set(texts) - self._vectors.keys())
        if new:
            vectors = Embedder(self._route.embedding).embed(new)
            self._vectors |= dict(zip(new, vectors, strict=True))
        return np.stack([self._vectors[text] for text in texts])

    def _doubts(self) -> dict[str, np.ndarray]:
        """By measure, what needs no learning."""
        route, rows = self._route, self._rows
        if isinstance(route, Learned):
            return {}
        if isinstance(route, CertifiedCascade) and route.verifier is None:
            measures = MEASURES if route.measure == "auto" else (route.measure,)
            return {m: np.array([_unsure(row, m) for row in rows]) for m in measures}
        return {"grade": np.array([doubt_by_grade(route, row) for row in rows])}


def _judged_as(row: Answered) -> tuple[str, str | None]:
    return row.sampled.key, row.sampled.label


def _usd(said: Answer | None) -> float:
    return float(said["cost_usd"]) if said else 0.0


def _unsure(row: Answered, measure: Measure) -> float:
    """As the cascade will see it: what is not a full answer escalates."""
    sure = confidence(row.cheap["token_logprobs"], measure)
    return -sure if is_full(row) and sure is not None else np.inf
