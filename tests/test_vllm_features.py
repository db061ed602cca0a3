"""What rows may ask of a real engine beside plain text: one start per kind of task."""

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from actors.engine import Answer
from actors.vllm_engine import VLLMEngine
from pipelines.requests import Request, check
from pipelines.tier import VLLM

MODEL = ROOT / "demo/models/small"
TEXT = "Write in upper case: apple tree"
SCHEMA = {
    "type": "object",
    "properties": {"fruit": {"enum": ["apple", "pear"]}, "ripe": {"type": "boolean"}},
    "required": ["fruit", "ripe"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TEMPLATE = "{% if tools %}{{ '<|system|>' ~ tools | tojson ~ '<|end|>' }}{% endif %}"


class Tier:
    """An engine and the event loop that it lives on."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.loop = asyncio.new_event_loop()
        arguments = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512}
        settings = VLLM(kind="vllm", model=str(folder), engine_args=arguments, **config)
        self.engine = VLLMEngine(settings, {"temperature": 0.0, "max_tokens": 64}, 3, stall_s=60)
        self.loop.run_until_complete(self.engine.start())

    def answers(self, *requests: Request) -> list[Answer]:
        async def all_at_once() -> list[Answer]:
            return await asyncio.gather(*(self.engine.answer(r) for r in requests))

        return self.loop.run_until_complete(all_at_once())

    def answer(self, text: str = TEXT, **fields: Any) -> Answer:
        (answer,) = self.answers(request(text, **fields))
        return answer

    def decode(self, token: int) -> str:
        text: str = self.engine._tokenizer.decode([token])
        return text

    def stop(self) -> None:
        self.loop.run_until_complete(self.engine.stop())


def request(text: str = TEXT, **fields: Any) -> Request:
    checked = check(text, None, fields)
    assert isinstance(checked, Request), checked
    return checked


def write_adapter(folder: Path) -> Path:
    """A LoRA adapter of rank 8 whose weights are drawn at random."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    weights = {}
    width = json.loads((MODEL / "config.json").read_text())["hidden_size"]
    for layer in range(2):
        place = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{place}.lora_A.weight"] = torch.randn(8, width, generator=generator)
        weights[f"{place}.lora_B.weight"] = torch.randn(width, 8, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tier]:
    """A tier that generates, with a template that shows tools, a parser and an adapter."""
    folder = tmp_path_factory.mktemp("writer")
    shutil.copytree(MODEL, folder / "model")
    template = folder / "model/chat_template.jinja"
    template.write_text(TEMPLATE + template.read_text())
    adapter = write_adapter(folder / "adapter")
    tier = Tier(folder / "model", tool_parser="hermes", lora_adapters={"law": str(adapter)})
    yield tier
    tier.stop()


def test_a_json_schema_holds(writer: Tier) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": SCHEMA}}
    answer = writer.answer(response_format=form)
    assert answer.finish_reason == "stop"
    assert set(json.loads(answer.response or "")) == {"fruit", "ripe"}


def test_a_regex_a_choice_and_a_grammar_hold(writer: Tier) -> None:
    patterns = {"regex": r"[0-9]{3}-[a-z]{2}", "choice": ["maybe"], "grammar": 'root ::= "ab"'}
    matches = (r"[0-9]{3}-[a-z]{2}", "maybe", "ab")
    for (kind, value), expected in zip(patterns.items(), matches, strict=True):
        answer = writer.answer(structured_outputs={kind: value})
        assert re.fullmatch(expected, answer.response or "")


def test_a_structure_that_is_cut_at_the_limit_is_an_answer_that_says_so(writer: Tier) -> None:
    answer = writer.answer(structured_outputs={"json": SCHEMA}, max_tokens=2)
    assert (answer.problem, answer.finish_reason) == (None, "length")


BAD_FORMS: list[dict[str, Any]] = [
    {"structured_outputs": {"regex": "([a-z"}},
    {"structured_outputs": {"regex": r"\bword(?=s)"}},
    {"structured_outputs": {"json": {"type": "nothing"}}},
    {"structured_outputs": {"json": "no JSON"}},
    {"structured_outputs": {"json": {"$ref": "#/nowhere"}}},
    {"structured_outputs": {"json": {"type": "number", "multipleOf": 3}}},
    {"structured_outputs": {"json": {"enum": []}}},
    {"structured_outputs": {"grammar": "root ::= nowhere"}},
    {"structured_outputs": {"grammar": 'root ::= root "a"'}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "xml"}},
    {"logprobs": True, "top_logprobs": 500},
    {"logit_bias": {"99999999": 1.0}},
    {"logit_bias": {"word": 1.0}},
    {"stop_token_ids": [99999999]},
    {"n": 3},
    {"tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    {"chat_template_kwargs": {"tokenize": False}},
]


def test_what_cannot_be_asked_is_an_error_row_beside_answers(writer: Tier) -> None:
    good, deaths = request(), writer.engine.occupancy.deaths
    first, *bad, last = writer.answers(good, *(request(**fields) for fields in BAD_FORMS), good)
    kinds = [answer.problem and answer.problem.kind for answer in bad]
    assert kinds == ["invalid_request"] * len(BAD_FORMS)
    assert first.response == last.response == "APPLE TREE"
    assert writer.engine.occupancy.deaths == deaths


def test_several_choices_from_one_seed_are_the_same_again(writer: Tier) -> None:
    asked = request(n=3, seed=5, temperature=2.0, max_tokens=12)
    one, again = writer.answers(asked, asked)
    choices = json.loads(one.choices or "")
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in choices]
    assert one.response == texts[0]
    assert len(set(texts)) > 1
    assert again.choices == one.choices
    assert one.usage.completion_tokens > 12


def test_logprobs_are_in_openais_format(writer: Tier) -> None:
    answer = writer.answer(logprobs=True, top_logprobs=2, max_tokens=4)
    content = json.loads(answer.token_logprobs or "")["content"]
    assert len(content) == answer.usage.completion_tokens
    for place in content:
        assert place["logprob"] == max(top["logprob"] for top in place["top_logprobs"]), "greedy"
        assert len(place["top_logprobs"]) == 2
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]
    (bare,) = writer.answers(request(logprobs=True, max_tokens=1))
    assert json.loads(bare.token_logprobs or "")["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_of_a_tool_comes_out_parsed(writer: Tier, choice: Any) -> None:
    # A call's JSON may hold whitespace, which this small model would write to the end.
    space = {str(i): -100.0 for i in range(1024) if writer.decode(i).isspace()}
    limits = {"logit_bias": space, "max_tokens": 200, "parallel_tool_calls": False}
    answer = writer.answer(tools=[TOOL], tool_choice=choice, **limits)
    (call,) = json.loads(answer.tool_calls or "")
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Rome")
    assert answer.finish_reason == "tool_calls"
    assert answer.response is None


def test_tools_stand_in_the_prompt_and_need_not_be_called(writer: Tier) -> None:
    with_tools, without = writer.answers(request(tools=[TOOL]), request())
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 40
    assert with_tools.tool_calls is None
    assert with_tools.response


def test_calls_of_earlier_turns_reach_the_template(writer: Tier) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "user", "content": TEXT},
    ]
    (answer,) = writer.answers(Request(messages, {"tools": [TOOL]}))
    assert answer.problem is None


def test_an_adapter_answers_the_rows_that_name_it_and_no_others(writer: Tier) -> None:
    plain, adapted = request(max_tokens=8), request(lora="law", max_tokens=8)
    answers = writer.answers(*[plain, adapted] * 8, request(lora="tax"))
    texts = [answer.response for answer in answers[:-1]]
    assert texts[::2] == ["APPLE TREE"] * 8
    assert len(set(texts[1::2])) == 1
    assert texts[1] != "APPLE TREE"
    unknown = answers[-1].problem
    assert unknown is not None
    assert "has no adapter 'tax'; it has law" in unknown.message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": [TOOL]}, "no tool_parser"),
        ({"lora": "law"}, "no adapter"),
        ({"encoding_format": "float"}, "use an embed tier"),
        ({"dimensions": 8}, "use an embed tier"),
    ],
)
def test_what_a_tier_is_not_configured_for_is_refused_without_its_model(
    fields: dict[str, Any], says: str
) -> None:
    engine = VLLMEngine(VLLM(kind="vllm", model=str(MODEL)), {}, 1, stall_s=60)
    problem = engine.refuse(request(**fields))
    assert problem is not None
    assert (problem.kind, says in problem.message) == ("unsupported", True)


@pytest.fixture(scope="module")
def embedder() -> Iterator[Tier]:
    tier = Tier(MODEL, task="embed")
    yield tier
    tier.stop()


def test_an_embed_tier_gives_the_models_own_vector(embedder: Tier) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(MODEL)(TEXT, return_tensors="pt")
    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32)
    last = model(**encoded).last_hidden_state[0, -1]
    expected = last / last.norm()
    answer = embedder.answer()
    assert torch.allclose(torch.tensor(answer.embedding), expected, atol=1e-3)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        encoded["input_ids"].shape[1],
        0,
    )
    assert answer.engine_ns > 0


def test_an_embed_tier_refuses_what_means_nothing_to_it(embedder: Tier) -> None:
    bad = [request(n=2), request(tools=[TOOL]), request(max_tokens=5)]
    conversation = Request([{"role": "system", "content": "x"}, *request().messages], {})
    answers = embedder.answers(*bad, conversation, request(dimensions=8), request())
    kinds = [answer.problem and answer.problem.kind for answer in answers]
    assert kinds == ["unsupported"] * 4 + ["invalid_request", None]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tier]:
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    labels = {"id2label": {0: "spam", 1: "ham", 2: "eggs"}, "num_labels": 3}
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(MODEL, dtype=torch.float32, **labels)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    tier = Tier(folder, task="classify")
    yield tier
    tier.stop()


def test_a_classify_tier_gives_the_label_and_all_scores(classifier: Tier) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = classifier.engine.model
    encoded = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")
    logits = AutoModelForSequenceClassification.from_pretrained(folder)(**encoded).logits[0]
    expected = dict(zip(("spam", "ham", "eggs"), logits.softmax(0).tolist(), strict=True))
    answer = classifier.answer()
    scores = json.loads(answer.scores or "")
    assert scores == pytest.approx(expected, abs=1e-3)
    assert answer.response == max(expected, key=lambda label: expected[label])
    assert torch.isclose(torch.tensor(sum(scores.values())), torch.tensor(1.0), atol=1e-3)
