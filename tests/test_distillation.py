"""The training class on tiny models, without Ray."""

import copy
import math
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from actors.distillation import Distillation
from actors.fake_quant import fake_quantize
from actors.greedy import greedy_answers
from actors.model_pair import ModelPair
from pipelines.distill_config import DistillConfig
from pipelines.distill_data import Example, Part
from pipelines.errors import RunFailure
from pipelines.publish import Measured
from pipelines.quant_formats import QuantFormat

END = 1


def tiny_model(seed: int = 0, hidden: int = 64) -> LlamaForCausalLM:
    """Random, with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=END,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=END)
    return model.eval()


def examples(count: int, seed: int) -> list[Example]:
    rng = Random(seed)
    made = []
    for i in range(count):
        prefix, answer = rng.randint(1, 12), rng.randint(1, 6)
        ids = tuple(rng.randrange(2, 50) for _ in range(prefix + answer))
        made.append(Example(ids, prefix, f"{seed} {i}".encode(), None))
    return made


def distillation(
    student: LlamaForCausalLM | None = None,
    rows: dict[Part, Sequence[Example]] | None = None,
    objective: Any = "kl",
    **settings: Any,
) -> Distillation:
    train = {"steps": 30, "batch_tokens": 120, "learning_rate": 3e-3, "warmup": 3}
    config = DistillConfig.model_validate(
        {
            "teacher": "t",
            "data": [{"path": "d"}],
            "output": "o",
            "eval": {"every_steps": 10},
            "max_new_tokens": 4,
            **settings,
            "train": {**train, "precision": "float32", **settings.get("train", {})},
        }
    )
    teacher = tiny_model()
    if student is None:
        student = copy.deepcopy(teacher)
        fake_quantize(student, QuantFormat("int4", 32), "mse", config.format.trainable_scales)
    parts: dict[Part, Sequence[Example]] = {
        "train": examples(40, 1),
        "validation": examples(10, 2),
        "test": examples(10, 3),
        **(rows or {}),
    }
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    return Distillation(ModelPair(config, teacher, student, decode, 64), parts, objective)


def held_out(training: Distillation) -> Measured:
    return training.pair.evaluate(training.parts["test"])


def run(training: Distillation) -> Distillation:
    while not training.finished:
        if training.check_due:
            training.check()
        else:
            training.step()
    return training


@pytest.mark.parametrize("trainable", [False, True])
def test_training_brings_the_student_nearer_to_its_teacher(trainable: bool) -> None:
    """On the rows it trains on: a random teacher has nothing that carries over to others."""
    training = run(
        distillation(rows={"validation": examples(40, 1)}, format={"trainable_scales": trainable})
    )
    assert training.best is not None
    assert training.best.kl < 0.8 * training.curve[0].kl
    assert held_out(training).rows == 10


def test_a_copy_that_is_not_quantized_has_no_divergence() -> None:
    found = held_out(distillation(tiny_model()))
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1.0


def test_the_teacher_and_only_the_teacher_stays_as_it_was() -> None:
    training = distillation()
    before = copy.deepcopy(training.teacher.state_dict())
    weight = next(training.student.parameters()).clone()
    training.step()
    assert all(torch.equal(v, before[k]) for k, v in training.teacher.state_dict().items())
    assert not torch.equal(weight, next(training.student.parameters()))


@pytest.mark.parametrize("objective", ["kl", "cross_entropy"])
def test_chunks_change_neither_loss_nor_gradient_and_bound_the_logits(objective: str) -> None:
    updates, losses = [], []
    for chunk in (3, 10_000):
        training = distillation(objective=objective, train={"kl_chunk": chunk})
        sizes = watch_logits(training)
        losses.append(training.step())
        updates.append([weight.detach().clone() for weight in training.trained])
        assert max(sizes) <= chunk
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(*updates, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def watch_logits(training: Distillation) -> list[int]:
    sizes: list[int] = []
    logits = training.pair.logits

    def watched(model: Any, hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return logits(model, hidden)

    training.pair.logits = watched  # type: ignore[method-assign]
    return sizes


def test_only_answer_tokens_are_learned() -> None:
    """With one answer token each, the loss is the divergence at that position alone."""
    rows = [Example((2, 3, 4, 5), 3, b"k", None)]
    training = distillation(rows={"train": rows})
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        student = training.student(input_ids=ids).logits[0, -1].log_softmax(-1)
        teacher = training.teacher(input_ids=ids).logits[0, -1].log_softmax(-1)
    expected = float((teacher.exp() * (teacher - student)).sum())
    assert training.step() == pytest.approx(expected, rel=1e-4)


def test_a_smaller_student_learns_hidden_states_through_a_projection() -> None:
    student = tiny_model(seed=5, hidden=32)
    rows: dict[Part, Sequence[Example]] = {"validation": examples(40, 1)}
    training = run(distillation(student, rows, train={"hidden_weight": 0.5}))
    assert training.projection.weight.shape == (64, 32)
    assert training.curve[-1].loss is not None
    assert training.best is not None
    assert training.best.kl < training.curve[0].kl


def test_a_resumed_training_ends_where_the_whole_one_ends() -> None:
    whole = run(distillation())
    first = distillation()
    while first.steps_done < 17:
        first.check() if first.check_due else first.step()
    state = copy.deepcopy(first.state_dict())
    second = distillation()
    second.load_state_dict(state)
    assert run(second).curve == whole.curve


def test_training_stops_when_nothing_gets_better() -> None:
    training = run(
        distillation(
            tiny_model(), train={"steps": 100}, eval={"every_steps": 1}, early_stop={"patience": 3}
        )
    )
    assert training.steps_done == 3
    assert training.best is not None
    assert training.best.step == 0


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    training = distillation()
    with torch.no_grad():
        training.student.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(RunFailure, match="learning_rate"):
        training.step()


def test_exact_match_counts_greedy_answers_that_are_the_label() -> None:
    teacher = tiny_model()
    prompts = [[2, 3, 4], [5, 6, 7, 8, 9]]
    answers = greedy_answers(teacher, prompts, 4, 64)
    labels = [" ".join(map(str, answers[0])), "something else"]
    rows = [
        Example((*prompt, *answer), len(prompt), b"k", label)
        for prompt, answer, label in zip(prompts, answers, labels, strict=True)
    ]
    found = held_out(distillation(tiny_model(), rows={"test": rows}))
    assert (found.score, found.labelled) == (0.5, 2)


def test_a_batch_of_prompts_gets_the_answers_that_each_gets_alone() -> None:
    model = tiny_model()
    prompts = [[7], [2, 3, 4], [5, 6, 7, 8, 9, 10, 11]]
    alone = [greedy_answers(model, [prompt], 5, 64)[0] for prompt in prompts]
    assert greedy_answers(model, prompts, 5, 64) == alone
    assert all(END not in answer[:-1] for answer in alone)


def test_answers_end_at_the_context() -> None:
    prompt = [3] * 62
    assert len(greedy_answers(tiny_model(), [prompt], 10, 64)[0]) <= 2
