"""What a client is told of its answers: headers, bodies, and the chunks of a stream."""

import base64
import struct
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from actors.engine import Piece
from actors.online_request import Asked
from pipelines.openai_batch import text_logprobs


def headers_of(asked: Sequence[Asked]) -> dict[str, str]:
    """Where answers come from and what they cost; of several texts the first's tier and source.

    A stream that begins before its answer is there cannot tell its cost yet: its last chunk does.
    """
    row = asked[0].row
    told = {"x-nightmill-tier": row["tier"], "x-nightmill-source": row["source"] or "generated"}
    if row["similarity"] is not None:
        told["x-nightmill-similarity"] = f"{row['similarity']:.4f}"
    prices = [one.price for one in asked if one.price is not None]
    if len(prices) == len(asked):
        told["x-nightmill-cost-usd"] = usd(sum(price.cost_nusd for price in prices))
        told["x-nightmill-escalations"] = str(row["escalations"] or 0)
    return {name: value for name, value in told.items() if value is not None}


def usd(nano_dollars: int) -> str:
    """Exact, without an exponent."""
    return f"{Decimal(nano_dollars).scaleb(-9):.9f}"


def joined(bodies: list[dict[str, Any]], created: int) -> dict[str, Any]:
    """One body for all texts of a request."""
    first = bodies[0]
    members = "data" if "data" in first else "choices"
    listed = [item for body in bodies for item in body[members]]
    usages = [body["usage"] for body in bodies]
    usage = {
        name: sum(u[name] for u in usages)
        for name, value in usages[0].items()
        if isinstance(value, int)
    }
    if "prompt_tokens_details" in usages[0]:
        cached = sum(u["prompt_tokens_details"]["cached_tokens"] or 0 for u in usages)
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    numbered = [{**item, "index": i} for i, item in enumerate(listed)]
    told = {**first, members: numbered, "usage": usage}
    return told if members == "data" else {**told, "created": created}


def base64_vectors(told: dict[str, Any]) -> None:
    """Write embeddings as their float32 bytes, as clients ask for by default."""
    for item in told["data"]:
        vector = item["embedding"]
        item["embedding"] = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class Speech:
    """One answer in chunks: what was said of it while it came, and in the end the rest."""

    def __init__(self, asked: Asked, model: str, usage: bool) -> None:
        self._asked, self._model, self._usage = asked, model, usage
        self._chat = asked.endpoint == "/v1/chat/completions"
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        self._frame = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{asked.row['row_id']}",
            "object": kind,
            "created": int(time.time()),
        }
        self._said: dict[int, str] = {}

    def piece(self, piece: Piece) -> Iterator[dict[str, Any]]:
        yield from self._text(piece.choice, piece.text, piece.logprobs)

    def end(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What was not said yet of an answer's body, how it ended, and what it took."""
        for choice in body["choices"]:
            yield from self._rest(choice)
        if self._usage:
            yield self._chunk([], usage=body["usage"])

    def _rest(self, choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
        at = choice["index"]
        message = choice.get("message") or {"content": choice.get("text")}
        text, said = message.get("content") or "", self._said.get(at)
        if said is None or text[len(said) :]:
            left = text[len(said or "") :]
            yield from self._text(at, left, None if said else choice.get("logprobs"))
        more = {n: message[n] for n in ("reasoning_content",) if message.get(n)}
        if calls := message.get("tool_calls"):
            more["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
        if more:
            yield self._chunk([{"index": at, "delta": more, "finish_reason": None}])
        last: dict[str, Any] = {"index": at, "finish_reason": choice["finish_reason"]}
        last["delta" if self._chat else "text"] = {} if self._chat else ""
        yield self._chunk([last], nightmill=self._origin())

    def _text(
        self, at: int, text: str, logprobs: dict[str, Any] | None
    ) -> Iterator[dict[str, Any]]:
        choice: dict[str, Any] = {"index": at, "finish_reason": None}
        if not self._chat:
            told = logprobs if logprobs is None or "tokens" in logprobs else text_logprobs(logprobs)
            choice |= {"text": text, "logprobs": told}
        else:
            begins = {} if at in self._said else {"role": "assistant"}
            choice |= {"delta": {**begins, "content": text}, "logprobs": logprobs}
        self._said[at] = self._said.get(at, "") + text
        yield self._chunk([choice])

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._frame, "model": self._model, "choices": choices, **more}

    def _origin(self) -> dict[str, str]:
        return {
            name.removeprefix("x-nightmill-").replace("-", "_"): value
            for name, value in headers_of([self._asked]).items()
        }
