"""Training a student to give its teacher's distributions; a plain class, one per worker.

Every worker holds both models and a share of each batch; gradients are summed over workers, so
that the number of workers changes nothing but the time and the memory for the optimizer's state.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import cross_entropy, kl_div, mse_loss
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from actors.fake_quant import refresh_scales
from actors.greedy import greedy_answers
from pipelines.distill_config import DistillConfig
from pipelines.distill_data import Example, Part, batches_from, similar_lengths
from pipelines.errors import RunFailure
from pipelines.publish import Measured

_IGNORED = -100
_LAST_RATE = 0.02
"""Of the peak; the cosine's end."""


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


@dataclass(frozen=True)
class Point:
    """The training curve at one step: the mean loss since the last point, and the check there."""

    step: int
    loss: float | None
    kl: float
    top1: float
    score: float | None


class Distillation:
    """One worker's part of a training run: `step` and `evaluate` are called by all together.

    Args:
        teacher: stays as it is.
        student: trained in place; its linear layers compute as they will when quantized.
        parts: the same rows on every worker.
        decode: an answer's tokens as text, without special ones.
        max_length: context of both models, in tokens.
    """

    def __init__(
        self,
        config: DistillConfig,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        parts: Mapping[Part, Sequence[Example]],
        decode: Callable[[Sequence[int]], str],
        max_length: int,
        ranks: Ranks = Ranks(),
        objective: Literal["kl", "cross_entropy"] = "kl",
    ) -> None:
        self.config, self.train = config, config.train
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = student
        self.parts, self.decode, self.max_length = parts, decode, max_length
        self.ranks, self.objective = ranks, objective
        self.device = student.device
        self.vocabulary = min(_width(teacher), _width(student))
        self.projection = self._projection()
        trained = [*student.parameters(), *self.projection.parameters()]
        self.trained = [weight for weight in trained if weight.requires_grad]
        self.optimizer = self._optimizer()
        self.steps_done = 0
        self.curve: list[Point] = []
        self._losses: list[float] = []
        self._lengths = [len(example.ids) for example in parts["train"]]
        self._seek()

    @property
    def best(self) -> Point | None:
        """The point with the lowest KL, the earliest of equals."""
        return min(self.curve, key=lambda point: point.kl, default=None)

    @property
    def stopped_early(self) -> bool:
        best = self.best
        if best is None:
            return False
        since = len(self.curve) - 1 - self.curve.index(best)
        return since >= self.config.early_stop.patience

    @property
    def finished(self) -> bool:
        return bool(self.curve) and (
            (self.steps_done >= self.train.steps and self.curve[-1].step == self.steps_done)
            or self.stopped_early
        )

    @property
    def check_due(self) -> bool:
        """Whether the state is to be evaluated and kept before the next step."""
        if self.curve and self.curve[-1].step == self.steps_done:
            return False
        last = self.steps_done >= self.train.steps
        return last or self.steps_done % self.config.eval.every_steps == 0

    def step(self) -> float:
        """One optimizer step over one batch; its mean loss per answer token.

        Raises:
            RunFailure: the loss is no longer a number.
        """
        self.student.train()
        rows = sorted(next(self._batches), key=lambda row: self._lengths[row])
        batch = [self.parts["train"][row] for row in rows]
        tokens = sum(example.answer_tokens for example in batch)
        loss = torch.zeros((), dtype=torch.float64)
        for group in self._groups(batch[self.ranks.rank :: self.ranks.world]):
            loss += self._backward(group, tokens)
        mean = float(self.ranks.sum(loss.to(self.device)))
        if not math.isfinite(mean):
            raise RunFailure(
                f"step {self.steps_done}: the loss is {mean}; lower train.learning_rate"
            )
        self._update()
        self.steps_done += 1
        self._losses.append(mean)
        return mean

    def check(self) -> Point:
        """Evaluate on the validation rows and put a point on the curve."""
        if not self.config.format.trainable_scales:
            refresh_scales(self.student)
        found = self.evaluate("validation")
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        self.curve.append(Point(self.steps_done, loss, found.kl, found.top1, found.score))
        return self.curve[-1]

    @torch.no_grad()
    def evaluate(self, part: Part) -> Measured:
        """How near the student is to the teacher on held-out rows, and how often right."""
        self.student.eval()
        rows = self.parts[part][self.ranks.rank :: self.ranks.world]
        sums = torch.zeros(5, dtype=torch.float64)
        for group in self._groups(rows):
            sums[:3] += self._divergence(group)
        labelled = [row for row in rows if row.label is not None]
        sums[3] = sum(self._right(labelled))
        sums[4] = len(labelled)
        kl, same, tokens, right, judged = self.ranks.sum(sums.to(self.device)).tolist()
        return Measured(
            kl=kl / tokens,
            top1=same / tokens,
            score=right / judged if judged else None,
            rows=len(self.parts[part]),
            labelled=int(judged),
        )

    def state_dict(self) -> dict[str, Any] | None:
        """All that a resume needs; every worker must call it, the first gets it."""
        if isinstance(self.optimizer, ZeroRedundancyOptimizer):
            self.optimizer.consolidate_state_dict(to=0)
        if self.ranks.rank:
            return None
        return {
            "student": self.student.state_dict(),
            "projection": self.projection.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps_done": self.steps_done,
            "losses": self._losses,
            "curve": [asdict(point) for point in self.curve],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another worker group stopped, with the very next batch."""
        self.student.load_state_dict(state["student"])
        self.projection.load_state_dict(state["projection"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["steps_done"]
        self.curve = [Point(**point) for point in state["curve"]]
        self._losses = list(state["losses"])
        self._seek()

    def _seek(self) -> None:
        train = self.train
        self._batches = batches_from(self._lengths, train.batch_tokens, train.seed, self.steps_done)

    def _projection(self) -> torch.nn.Module:
        """From the student's hidden states to the teacher's; begins as the identity."""
        if not self.train.hidden_weight:
            return torch.nn.Identity()
        sizes = (self.student.config.hidden_size, self.teacher.config.hidden_size)
        projection = torch.nn.Linear(*sizes, bias=False, device=self.device)
        torch.nn.init.eye_(projection.weight)
        return projection

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW; of several workers each keeps a share of its state."""
        options: dict[str, Any] = {
            "lr": self.train.learning_rate,
            "betas": (0.9, 0.95),
            "weight_decay": self.train.weight_decay,
        }
        if self.ranks.world > 1:
            return ZeroRedundancyOptimizer(self.trained, torch.optim.AdamW, **options)
        return torch.optim.AdamW(self.trained, **options)

    def _update(self) -> None:
        for weight in self.trained:
            # A worker without rows in this batch takes part all the same.
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            self.ranks.sum(weight.grad)
        torch.nn.utils.clip_grad_norm_(self.trained, self.train.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _rate(self) -> float:
        """Linear warm-up, then a cosine."""
        train = self.train
        warm = min(1.0, (self.steps_done + 1) / (train.warmup + 1))
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.steps_done / train.steps, 1.0)))
        return train.learning_rate * warm * (_LAST_RATE + (1 - _LAST_RATE) * cosine)

    def _backward(self, group: Sequence[Example], tokens: int) -> float:
        """Add the gradient of the group's share of the loss; returns that share.

        Logits exist for `kl_chunk` positions at a time: each chunk's gradient goes into the
        hidden states, and from there once through the layers.
        """
        ids, targets = self._padded(group)
        chosen = targets != _IGNORED
        with torch.no_grad():
            wanted = self._hidden(self.teacher, ids)[chosen]
        hidden = self._hidden(self.student, ids)[chosen]
        leaf = hidden.detach().requires_grad_()
        answers, total = targets[chosen], 0.0
        for start in range(0, len(leaf), self.train.kl_chunk):
            at = slice(start, start + self.train.kl_chunk)
            loss = self._loss(leaf[at], wanted[at], answers[at]) / tokens
            torch.autograd.backward(loss)
            total += float(loss.detach())
        torch.autograd.backward(hidden, leaf.grad)
        return total

    def _loss(
        self, hidden: torch.Tensor, wanted: torch.Tensor, answers: torch.Tensor
    ) -> torch.Tensor:
        """Summed over positions: [positions, width] of student and teacher, [positions] ids."""
        logits = self._logits(self.student, hidden)
        if self.objective == "cross_entropy":
            return cross_entropy(logits, answers, reduction="sum")
        temperature = self.train.temperature
        with torch.no_grad():
            target = self._logits(self.teacher, wanted)
        loss = temperature**2 * _kl(logits / temperature, target / temperature)
        if self.train.hidden_weight:
            near = mse_loss(self.projection(hidden.float()), wanted.float(), reduction="sum")
            loss = loss + self.train.hidden_weight * near / wanted.shape[-1]
        return loss

    def _divergence(self, group: Sequence[Example]) -> torch.Tensor:
        """(sum of KL, positions with the same likeliest token, positions) of a group."""
        ids, targets = self._padded(group)
        chosen = targets != _IGNORED
        hidden, wanted = (self._hidden(m, ids)[chosen] for m in (self.student, self.teacher))
        sums = torch.zeros(3, dtype=torch.float64)
        for start in range(0, len(hidden), self.train.kl_chunk):
            at = slice(start, start + self.train.kl_chunk)
            logits = self._logits(self.student, hidden[at])
            target = self._logits(self.teacher, wanted[at])
            sums[0] += float(_kl(logits, target))
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

    def _hidden(self, model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        """[rows, length, width]: what the head turns into logits."""
        with self._autocast():
            # Padding stands on the right, where causal attention never looks: no mask is needed.
            return model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def _logits(self, model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
        """[positions, vocabulary] in float32; widths differ where one model's is padded."""
        with self._autocast():
            head = model.get_output_embeddings()
            return head(hidden)[..., : self.vocabulary].float()

    def _autocast(self) -> torch.autocast:
        enabled = self.train.precision == "bfloat16"
        # The cache would keep a cast weight's graph, which a chunk's backward pass ends.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False
        )

    def _groups(self, rows: Sequence[Example]) -> list[list[Example]]:
        """Rows of similar length, at most so many that they fit into memory padded."""
        lengths = [len(row.ids) for row in rows]
        groups = []
        for group in similar_lengths(range(len(rows)), lengths):
            size = max(1, self.train.micro_batch_tokens // lengths[group[-1]])
            groups += [group[i : i + size] for i in range(0, len(group), size)]
        return [[rows[i] for i in group] for group in groups]

    def _padded(self, group: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and the next tokens, [rows, longest - 1]; only answers are targets."""
        ids = [torch.tensor(example.ids) for example in group]
        targets = [
            torch.tensor((_IGNORED,) * example.prefix + example.ids[example.prefix :])
            for example in group
        ]
        padded = pad_sequence(ids, batch_first=True)[:, :-1]
        wanted = pad_sequence(targets, batch_first=True, padding_value=_IGNORED)[:, 1:]
        return padded.to(self.device), wanted.to(self.device)


def _kl(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(target || logits) summed over positions: [positions, vocabulary] both."""
    return kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="sum", log_target=True)


def _width(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.shape[0])
