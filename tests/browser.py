"""A headless Chromium, spoken to by its own protocol."""

import asyncio
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from conftest import ROOT
from websockets.asyncio.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "chrome")


def chromium() -> str | None:
    """A browser on this machine, or the one that `make test` unpacks; None if there is none."""
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, _NAMES)]
    own = ROOT / ".venv" / "browser" / "chromium"
    return next((path for path in found if path), str(own) if own.exists() else None)


class Tab:
    """One page. Every call ends when the browser has answered."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self._socket, self._session, self._ids = socket, session, count(100)
        self.console: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        mine = next(self._ids)
        call = {"id": mine, "method": method, "params": parameters, "sessionId": self._session}
        await self._socket.send(json.dumps(call))
        while True:
            message = json.loads(await self._socket.recv())
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(message["params"]))
            if message.get("id") == mine:
                assert "error" not in message, message
                return dict(message["result"])

    async def evaluate(self, script: str) -> Any:
        done = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until a script's value is true, and return it."""
        async with asyncio.timeout(20):
            while not (value := await self.evaluate(script)):
                await asyncio.sleep(0.05)
        return value

    async def press(self, key: str, code: int, modifiers: int = 0, text: str = "") -> None:
        pressed = {
            "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers,
        }  # fmt: skip
        await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **pressed)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def write(self, text: str) -> None:
        await self.send("Input.insertText", text=text)


@asynccontextmanager
async def opened(executable: str, url: str) -> AsyncIterator[Tab]:
    """A tab that shows a page, in a browser of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            executable, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--no-zygote",
            f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with connect(await _address(process), max_size=None) as socket:
                yield await _tab(socket, url)
        finally:
            process.kill()
            await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(30):
        async for line in process.stderr:
            if match := re.search(r"DevTools listening on (ws://\S+)", line.decode()):
                return match[1]
    raise RuntimeError("the browser ended before it listened")


async def _tab(socket: ClientConnection, url: str) -> Tab:
    async def call(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        await socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(await socket.recv())).get("id") != number:
            pass
        return dict(message["result"])

    target = (await call(1, "Target.createTarget", url="about:blank"))["targetId"]
    session = await call(2, "Target.attachToTarget", targetId=target, flatten=True)
    tab = Tab(socket, session["sessionId"])
    for domain in ("Runtime", "Log", "Page"):
        await tab.send(f"{domain}.enable")
    await tab.send("Page.navigate", url=url)
    await tab.until(f"document.readyState === 'complete' && location.href.startsWith({url!r})")
    return tab
