"""The check step: turn what a row holds into a request, or into the reason why it is none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from pipelines.errors import RowProblem

ROLES = ("system", "developer", "user", "assistant", "tool")


def _whole(value: Any) -> Any:
    """Accept 48.0 for 48: a nullable integer column read through pandas holds floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


WholeNumber = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[WholeNumber, Field(ge=0, lt=2**31)]


class Constraint(TypedDict, total=False):
    """What vLLM's `structured_outputs` may ask for: one of these."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    json: dict[str, Any] | str
    regex: str
    choice: Annotated[list[str], Field(min_length=1)]
    grammar: str


def _named(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for tool in tools:
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError('each is {"type": "function", "function": {"name": ...}}')
    return tools


def _one(constraint: Constraint) -> Constraint:
    if len(constraint) != 1:
        raise ValueError(f"give exactly one of {', '.join(Constraint.__annotations__)}")
    return constraint


OneConstraint = Annotated[Constraint, AfterValidator(_one)]
Tools = Annotated[list[dict[str, Any]], Field(min_length=1), AfterValidator(_named)]


class SamplingFields(BaseModel):
    """Fields of a request beside its text, under OpenAI's and vLLM's names; unset is omitted.

    Attributes:
        lora: the name of one of the tier's adapters.
        dimensions: of an embedding, where the model can be asked for fewer.
        encoding_format: of an embedding; asking for one is asking for an embedding.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    min_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[WholeNumber, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Count] | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    logit_bias: dict[str, float] | None = None
    skip_special_tokens: bool | None = None
    seed: Annotated[WholeNumber, Field(ge=0, lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    n: Annotated[Count, Field(ge=1)] | None = None
    logprobs: bool | Count | None = None
    top_logprobs: Count | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: OneConstraint | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    lora: str | None = None
    dimensions: Annotated[Count, Field(ge=1)] | None = None
    encoding_format: Literal["float"] | None = None

    def given(self) -> dict[str, Any]:
        """The fields that are set, by name."""
        return self.model_dump(exclude_none=True)


_ALIASES = {"max_completion_tokens": "max_tokens"}
REQUEST_FIELDS = (*SamplingFields.model_fields, *_ALIASES)
EMBEDDING_FIELDS = ("dimensions", "encoding_format")


def _kinds(field: str) -> set[Any]:
    """The kinds of values that a field takes: str, dict, list, int, Literal, ..."""
    annotation = SamplingFields.model_fields[field].annotation
    members = [get_args(m)[0] if get_origin(m) is Annotated else m for m in get_args(annotation)]
    return {dict if m is Constraint else get_origin(m) or m for m in members}


TEXT_FIELDS = {name for name in SamplingFields.model_fields if _kinds(name) & {str, Literal}}
"""Fields whose value may be plain text; a CSV cell of another field is a number or JSON."""
NESTED_FIELDS = {
    name
    for name in SamplingFields.model_fields
    if dict in _kinds(name) or (list in _kinds(name) and name not in TEXT_FIELDS)
}
"""Fields whose value may be JSON text where a format has no nesting."""
_OTHER_FORMS = (
    "response_format", "structured_outputs", "tools", "tool_choice", "logprobs", "top_logprobs",
    "chat_template_kwargs", "lora", "dimensions", "encoding_format",
)  # fmt: skip


def other_forms(fields: Mapping[str, Any]) -> list[str]:
    """The fields that ask for another answer than one plain text of the model itself."""
    nothing = (None, False, "none", {"type": "text"})
    asked = [name for name in _OTHER_FORMS if fields.get(name) not in nothing]
    return [*asked, "n"] if fields.get("n", 1) > 1 else asked


@dataclass(frozen=True)
class Request:
    """One valid request.

    Attributes:
        messages: role and content of each turn, oldest first.
        sampling: the fields that the row itself gave; the run's defaults are not mixed in.
        tier: the tier that the row asked for by name, or None.
        priority: in front of an engine the larger waits for the smaller; changes no answer.
        cache_salt: of two requests with unlike ones neither is faster for what the prefix cache
            holds of the other; changes no answer.
    """

    messages: list[dict[str, Any]]
    sampling: dict[str, Any]
    tier: str | None = None
    priority: int = 0
    cache_salt: str | None = None

    @property
    def last_user_text(self) -> str:
        for message in reversed(self.messages):
            if message["role"] == "user":
                return text_of(message["content"])
        return ""

    def is_deterministic(self, defaults: Mapping[str, Any]) -> bool:
        """Whether a second answer would be the same: greedy, or sampled from a stated seed."""
        temperature = self.sampling.get("temperature", defaults.get("temperature"))
        seed = self.sampling.get("seed", defaults.get("seed"))
        return temperature == 0 or seed is not None

    def to_json(self) -> str:
        online = [self.priority, self.cache_salt]
        last = online if any(online) else []
        return json.dumps([self.messages, self.sampling, self.tier, *last], ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Request":
        return cls(*json.loads(text))


def text_of(content: Any) -> str:
    """The text of a message's content, which is a string or a list of typed parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def check(
    prompt: Any, messages: Any, fields: Mapping[str, Any], tier: str | None = None
) -> Request | RowProblem:
    """Validate one row.

    Args:
        prompt: the row's prompt or None.
        messages: the row's chat messages or None.
        fields: the row's sampling fields; None counts as omitted.
        tier: the tier that the row names, if any.
    """
    if messages is None:
        turns = _from_prompt(prompt)
    elif prompt is not None:
        turns = RowProblem("invalid_row", "has both prompt and messages; give one of them")
    else:
        turns = _check_messages(messages)
    if isinstance(turns, RowProblem):
        return turns
    sampling = _check_fields(fields)
    if isinstance(sampling, RowProblem):
        return sampling
    try:
        json.dumps([turns, sampling], ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return RowProblem("invalid_row", "holds no valid Unicode (a lone surrogate)")
    return Request(turns, sampling, tier)


def _from_prompt(prompt: Any) -> list[dict[str, Any]] | RowProblem:
    if prompt is None:
        return RowProblem("invalid_row", "has neither prompt nor messages")
    if not isinstance(prompt, str):
        return RowProblem("invalid_row", f"prompt must be text, not {type(prompt).__name__}")
    if not prompt.strip():
        return RowProblem("invalid_row", "prompt is empty")
    return [{"role": "user", "content": prompt}]


def _check_messages(messages: Any) -> list[dict[str, Any]] | RowProblem:
    if not isinstance(messages, list):
        return RowProblem("invalid_row", f"messages must be a list, not {type(messages).__name__}")
    if not messages:
        return RowProblem("invalid_row", "messages is empty")
    turns = []
    for i, message in enumerate(messages):
        problem = _message_problem(message, f"messages[{i}]")
        if problem:
            return problem
        # A Parquet struct column gives every message every key; a null key was never written.
        turn = {key: value for key, value in message.items() if value is not None}
        if "content" in turn:
            turn["content"] = text_of(turn["content"])
        turns.append(turn)
    return turns


def _message_problem(message: Any, where: str) -> RowProblem | None:
    if not isinstance(message, dict):
        return RowProblem("invalid_row", f"{where} must be an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        return RowProblem("invalid_row", f"{where}.role is {role!r}; roles are {', '.join(ROLES)}")
    calls = message.get("tool_calls")
    if calls is not None and not _are_calls(calls):
        says = 'each is {"type": "function", "function": {"name": ..., "arguments": ...}}'
        return RowProblem("invalid_row", f"{where}.tool_calls must be a list of calls; {says}")
    if content is None and not calls:
        return RowProblem("invalid_row", f"{where} has no content")
    if isinstance(content, list):
        if any(not isinstance(p, dict) or p.get("type") != "text" for p in content):
            return RowProblem("unsupported", f"{where}.content may hold text parts only")
        if any(not isinstance(p.get("text"), str) for p in content):
            return RowProblem("invalid_row", f"{where}.content has a part without text")
    elif content is not None and not isinstance(content, str):
        return RowProblem(
            "invalid_row", f"{where}.content must be text, not {type(content).__name__}"
        )
    if role == "user" and not text_of(content).strip():
        return RowProblem("invalid_row", f"{where}.content is empty")
    return None


def _are_calls(calls: Any) -> bool:
    """Whether these are an assistant's calls of tools; chat templates rely on their form."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return False
    functions = [call.get("function") for call in calls]
    return all(
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), str | dict | None)
        for function in functions
    )


def _check_fields(fields: Mapping[str, Any]) -> dict[str, Any] | RowProblem:
    given = {_ALIASES.get(k, k): v for k, v in fields.items() if v is not None}
    if not given:
        return {}
    try:
        return SamplingFields.model_validate(given).given()
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0] if first["loc"] else "request"
        return RowProblem(
            "invalid_request",
            f"{name}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})",
        )
