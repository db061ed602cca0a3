"""A teacher and a student on the same rows: how far apart their answers are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from actors.greedy import greedy_answers
from pipelines.distill_config import DistillConfig
from pipelines.distill_data import Example, similar_lengths
from pipelines.publish import Measured

IGNORED = -100


@dataclass(frozen=True)
class Ranks:
    """Which worker this is, of how many."""

    rank: int = 0
    world: int = 1

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the workers, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values


class ModelPair:
    """One worker's two models; `evaluate` is called by all workers together.

    Args:
        decode: an answer's tokens as text, without special ones.
        max_length: context of both models, in tokens.
    """

    def __init__(
        self,
        config: DistillConfig,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        decode: Callable[[Sequence[int]], str],
        max_length: int,
        ranks: Ranks = Ranks(),
    ) -> None:
        self.config, self.ranks = config, ranks
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = student
        self.decode, self.max_length = decode, max_length
        self.device = student.device
        self.vocabulary = min(_width(teacher), _width(student))

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example]) -> Measured:
        """How near the student is to the teacher on held-out rows, and how often right."""
        self.student.eval()
        rows = examples[self.ranks.rank :: self.ranks.world]
        sums = torch.zeros(5, dtype=torch.float64)
        for group in self.groups(rows):
            sums[:3] += self._divergence(group)
        labelled = [row for row in rows if row.label is not None]
        sums[3] = sum(self._right(labelled))
        sums[4] = len(labelled)
        kl, same, tokens, right, judged = self.ranks.sum(sums.to(self.device)).tolist()
        return Measured(
            kl=kl / tokens,
            top1=same / tokens,
            score=right / judged if judged else None,
            rows=len(examples),
            labelled=int(judged),
        )

    def hidden(self, model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        """[rows, length, width]: what the head turns into logits."""
        with self._autocast():
            # Padding stands on the right, where causal attention never looks: no mask is needed.
            return model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def logits(self, model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
        """[positions, vocabulary] in float32; widths differ where one model's is padded."""
        with self._autocast():
            head = model.get_output_embeddings()
            return head(hidden)[..., : self.vocabulary].float()

    def groups(self, rows: Sequence[Example]) -> list[list[Example]]:
        """Rows of similar length, at most so many that they fit into memory padded."""
        lengths = [len(row.ids) for row in rows]
        groups = []
        for group in similar_lengths(range(len(rows)), lengths):
            size = max(1, self.config.train.micro_batch_tokens // lengths[group[-1]])
            groups += [group[i : i + size] for i in range(0, len(group), size)]
        return [[rows[i] for i in group] for group in groups]

    def padded(self, group: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and the next tokens, [rows, longest - 1]; only answers are targets."""
        ids = [torch.tensor(example.ids) for example in group]
        targets = [
            torch.tensor((IGNORED,) * example.prefix + example.ids[example.prefix :])
            for example in group
        ]
        padded = pad_sequence(ids, batch_first=True)[:, :-1]
        wanted = pad_sequence(targets, batch_first=True, padding_value=IGNORED)[:, 1:]
        return padded.to(self.device), wanted.to(self.device)

    def _divergence(self, group: Sequence[Example]) -> torch.Tensor:
        """(sum of KL, positions with the same likeliest token, positions) of a group."""
        ids, targets = self.padded(group)
        chosen = targets != IGNORED
        hidden, wanted = (self.hidden(m, ids)[chosen] for m in (self.student, self.teacher))
        sums = torch.zeros(3, dtype=torch.float64)
        for start in range(0, len(hidden), self.config.train.kl_chunk):
            at = slice(start, start + self.config.train.kl_chunk)
            logits = self.logits(self.student, hidden[at])
            target = self.logits(self.teacher, wanted[at])
            sums[0] += float(divergence(logits, target))
            sums[1] += int((logits.argmax(-1) == target.argmax(-1)).sum())
            sums[2] += len(logits)
        return sums

    def _right(self, rows: Sequence[Example]) -> list[bool]:
        """Whether the student's greedy answer is the label, row by row."""
        if not rows:
            return []
        prompts = [row.ids[: row.prefix] for row in rows]
        with self._autocast():
            answers = greedy_answers(
                self.student, prompts, self.config.max_new_tokens, self.max_length
            )
        return [
            self.decode(answer).strip() == (row.label or "").strip()
            for row, answer in zip(rows, answers, strict=True)
        ]

    def _autocast(self) -> torch.autocast:
        enabled = self.config.train.precision == "bfloat16"
        # The cache would keep a cast weight's graph, which a chunk's backward pass ends.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False
        )


def divergence(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(target || logits) summed over positions: [positions, vocabulary] both."""
    return kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="sum", log_target=True)


def _width(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.shape[0])
