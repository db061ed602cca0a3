"""The stand-in's files and batches, as OpenAI's API has them."""

import json
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from aiohttp import web

Answerer = Callable[[web.Request], Awaitable[web.Response]]

if TYPE_CHECKING:
    from tests.standin import Standin


class Batches:
    """Provider batches that are done at once, or after `batch_s`, or expire with a part done."""

    def __init__(self, state: "Standin") -> None:
        self._state = state
        self._files: dict[str, bytes] = {}
        self._results = set[str]()
        self._batches = state.batches
        self._numbers = count(1)

    def add_to(self, app: web.Application) -> None:
        for method, path, answer in (
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files/{id}/content", self._content),
            ("POST", "/v1/batches", self._create),
            ("GET", "/v1/batches", self._list),
            ("GET", "/v1/batches/{id}", self._retrieve),
        ):
            app.router.add_route(method, path, self._for_those_with_a_key(answer))

    def _for_those_with_a_key(self, answer: Answerer) -> Answerer:
        async def checked(request: web.Request) -> web.Response:
            if self._state.lets_in(request):
                return await answer(request)
            return web.json_response({"error": {"message": "no such key"}}, status=401)

        return checked

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        part = form["file"]
        assert isinstance(part, web.FileField)
        data = part.file.read()
        name = self._keep(data)
        return web.json_response(
            {
                "id": name,
                "object": "file",
                "bytes": len(data),
                "filename": part.filename,
                "purpose": form["purpose"],
                "created_at": 0,
                "status": "processed",
            }
        )

    def _keep(self, data: bytes) -> str:
        name = f"file-{next(self._numbers)}"
        self._files[name] = data
        return name

    async def _content(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name in self._results and self._state.script.garble:
            self._state.script.garble -= 1
            return web.Response(body=b"{")
        return web.Response(body=self._files[name])

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = f"batch-{next(self._numbers)}"
        self._batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "metadata": body.get("metadata"),
            "status": "validating",
            "created_at": int(time.time()),
            "_began": time.monotonic(),
            "_expires": len(self._batches) < self._state.script.expire,
        }
        lost = len(self._batches) <= self._state.script.lose_batches
        return web.json_response(self._told(name), status=500 if lost else 200)

    async def _list(self, request: web.Request) -> web.Response:
        """Newest first, a page at a time."""
        names = list(reversed(self._batches))
        after = request.query.get("after")
        names = names[names.index(after) + 1 :] if after else names
        limit = int(request.query.get("limit", 20))
        page = [self._told(name) for name in names[:limit]]
        return web.json_response({"object": "list", "data": page, "has_more": len(names) > limit})

    async def _retrieve(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        batch = self._batches[name]
        over = time.monotonic() - batch["_began"] >= self._state.script.batch_s
        if over and batch["status"] == "validating":
            self._finish(batch)
        return web.json_response(self._told(name))

    def _finish(self, batch: dict[str, Any]) -> None:
        lines = self._files[batch["input_file_id"]].splitlines()
        if batch["_expires"]:
            lines = lines[: int(len(lines) * self._state.script.batch_share)]
        outputs, errors = [], []
        for line in map(json.loads, lines):
            done = self._done(line)
            (errors if done["response"]["status_code"] != 200 else outputs).append(done)
        batch["status"] = "expired" if batch["_expires"] else "completed"
        if outputs:
            batch["output_file_id"] = self._keep(_jsonl(outputs))
            self._results.add(batch["output_file_id"])
        if errors:
            batch["error_file_id"] = self._keep(_jsonl(errors))

    def _done(self, line: dict[str, Any]) -> dict[str, Any]:
        text = str(line["body"].get("messages") or line["body"].get("prompt"))
        if "refuse me" in text:
            error = {"message": "scripted", "type": "invalid_request_error", "code": None}
            response = {"status_code": 400, "body": {"error": error}}
        else:
            answer = self._state.answer(line["url"], line["body"])
            self._state.count(json.dumps(line["body"]).encode(), answer)
            response = {"status_code": 200, "body": answer}
        return {"id": "r", "custom_id": line["custom_id"], "response": response, "error": None}

    def _told(self, name: str) -> dict[str, Any]:
        batch = self._batches[name]
        return {key: value for key, value in batch.items() if not key.startswith("_")}


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
