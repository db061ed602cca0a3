"""Training a student to give its teacher's distributions; a plain class, one per worker.

Every worker holds both models and a share of each batch; gradients are summed over workers, so
that the number of workers changes nothing but the time and the memory for the optimizer's state.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import cross_entropy, mse_loss

from actors.fake_quant import refresh_scales
from actors.model_pair import IGNORED, ModelPair, divergence
from pipelines.distill_data import Example, Part, batches_from
from pipelines.errors import RunFailure

_LAST_RATE = 0.02
"""Of the peak; the cosine's end."""


@dataclass(frozen=True)
class Point:
    """The training curve at one step: the mean loss since the last point, and the check there."""

    step: int
    loss: float | None
    kl: float
    top1: float
    score: float | None


class Distillation:
    """One worker's part of a training run: `step` and `check` are called by all together.

    Args:
        pair: the teacher, which stays as it is, and the student, which is trained in place; its
            linear layers compute as they will when quantized.
        parts: the same rows on every worker.
    """

    def __init__(
        self,
        pair: ModelPair,
        parts: Mapping[Part, Sequence[Example]],
        objective: Literal["kl", "cross_entropy"] = "kl",
    ) -> None:
        self.pair, self.parts, self.objective = pair, parts, objective
        self.config, self.train, self.ranks = pair.config, pair.config.train, pair.ranks
        self.teacher, self.student, self.device = pair.teacher, pair.student, pair.device
        self.projection = self._projection()
        trained = [*self.student.parameters(), *self.projection.parameters()]
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
        for group in self.pair.groups(batch[self.ranks.rank :: self.ranks.world]):
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
        found = self.pair.evaluate(self.parts["validation"])
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        self.curve.append(Point(self.steps_done, loss, found.kl, found.top1, found.score))
        return self.curve[-1]

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
        ids, targets = self.pair.padded(group)
        chosen = targets != IGNORED
        with torch.no_grad():
            wanted = self.pair.hidden(self.teacher, ids)[chosen]
        hidden = self.pair.hidden(self.student, ids)[chosen]
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
        logits = self.pair.logits(self.student, hidden)
        if self.objective == "cross_entropy":
            return cross_entropy(logits, answers, reduction="sum")
        temperature = self.train.temperature
        with torch.no_grad():
            target = self.pair.logits(self.teacher, wanted)
        loss = temperature**2 * divergence(logits / temperature, target / temperature)
        if self.train.hidden_weight:
            near = mse_loss(self.projection(hidden.float()), wanted.float(), reduction="sum")
            loss = loss + self.train.hidden_weight * near / wanted.shape[-1]
        return loss
