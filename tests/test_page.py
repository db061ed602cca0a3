"""The page in a real browser, over an endpoint of real HTTP."""

import asyncio
import base64
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from browser import Tab, chromium, opened
from fastapi import Depends, FastAPI, Request, Response
from test_online_metrics import Seen, row

from actors.observer import Observer
from actors.online_metrics import OnlineMetrics
from jobs.online_errors import ApiError, answer_errors
from jobs.online_watching import page_router, watching_router

BROWSER = chromium()
KEY = "nm-right"
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here: install one, or npm for `make test` to fetch it"
)


def endpoint() -> FastAPI:
    """An endpoint that shouts back, keeps a prompt that it knows, and fails at `fail`."""
    known: set[str] = set()
    observer = Observer(OnlineMetrics())

    async def health() -> dict[str, Any]:
        return {"ready": True}

    async def authenticate(request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            raise ApiError(401, "no valid API key", "invalid_request_error")
        request.state.tenant, request.state.admin = "acme", False

    app = FastAPI()
    answer_errors(app)
    asks = [Depends(authenticate)]
    app.include_router(watching_router(observer, health), dependencies=asks)
    app.include_router(page_router())

    @app.get("/v1/models", dependencies=asks)
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "large"}]}

    @app.post("/v1/chat/completions", dependencies=asks)
    async def chat(body: dict[str, Any], response: Response) -> dict[str, Any]:
        text = body["messages"][0]["content"]
        if text == "fail":
            raise ApiError(503, "no engine <b>answers</b>", "server_error")
        source = "cache_exact" if text in known else "generated"
        known.add(text)
        cost = 0 if source == "cache_exact" else 1500
        response.headers["x-nightmill-tier"] = "large"
        response.headers["x-nightmill-source"] = source
        response.headers["x-nightmill-cost-usd"] = f"{cost / 1e9:.9f}"
        response.headers["x-request-id"] = "req-<b>7</b>"
        observer.finished(Seen(row(source=source), cost_nusd=cost, baseline_nusd=2000))
        return {
            "choices": [{"message": {"content": text.upper()}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 2, "completion_tokens": 3},
        }

    return app


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(endpoint(), log_level="warning", loop="asyncio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    listener.close()


async def facts(tab: Tab, name: str) -> dict[str, str]:
    script = (
        f"Object.fromEntries([...document.querySelectorAll('#{name} dt')]"
        ".map(t => [t.textContent, t.nextElementSibling.textContent]))"
    )
    return dict(await tab.evaluate(script))


async def focused(tab: Tab) -> str:
    return str(await tab.evaluate("document.activeElement.id"))


async def asked(tab: Tab, prompt: str) -> str:
    """Type a prompt where the focus is, send it by keyboard, and wait for what is said."""
    await tab.evaluate("document.activeElement.select()")
    await tab.write(prompt)
    await tab.press("Enter", 13, modifiers=2)
    await tab.until("!asking")
    return str(await tab.evaluate("document.getElementById('answer').textContent"))


@needs_browser
def test_a_person_tries_a_prompt_with_the_keyboard_alone(address: str) -> None:
    assert BROWSER is not None

    async def use(browser: str) -> None:
        async with opened(browser, address) as tab:
            await tab.press("Tab", 9)
            assert await focused(tab) == "key"
            await tab.write(KEY)
            order = []
            while "prompt" not in order:
                await tab.press("Tab", 9)
                order.append(await focused(tab))
            assert order == ["model", "limit", "prompt"]
            await tab.until("document.getElementById('health').textContent === 'Ready'")
            assert await asked(tab, "hello <i>you</i>") == "HELLO <I>YOU</I>"
            shown = await facts(tab, "facts")
            assert shown["Tier"] == "large"
            assert shown["Source"] == "generated"
            assert shown["Cost"] == "$0.000001500"
            assert shown["Request"] == "req-<b>7</b>"
            assert shown["Time"].endswith(" s")
            await asked(tab, "hello <i>you</i>")
            assert (await facts(tab, "facts"))["Source"] == "cache_exact"
            await tab.until("document.getElementById('totals').textContent.includes('62.5 %')")
            totals = await facts(tab, "totals")
            assert totals["Saved"] == "$0.000002500 (62.5 %)"
            assert totals["By source"] == "generated 1, cache_exact 1"
            assert await asked(tab, "fail") == "503: no engine <b>answers</b>"
            await tab.press("Tab", 9)
            assert await focused(tab) == "send"
            await looks_right(tab)
            refused = [line for line in tab.console if "401" not in line and "503" not in line]
            assert refused == []

    asyncio.run(use(BROWSER))


async def looks_right(tab: Tab) -> None:
    """Light and dark, wide and narrow: nothing sticks out, text is readable, focus is seen."""
    for scheme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        await tab.send("Emulation.setEmulatedMedia", features=media)
        assert await tab.evaluate(_WORST_CONTRAST) >= 4.5, scheme
        outline = "getComputedStyle(document.activeElement).outlineWidth"
        assert await tab.evaluate(outline) == "3px"
        for width in (1200, 320):
            await tab.send(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=900, deviceScaleFactor=1, mobile=False,
            )  # fmt: skip
            assert await tab.evaluate("document.documentElement.scrollWidth") <= width
            await shot(tab, f"{scheme}-{width}.png")
    unlabelled = "[...document.querySelectorAll('input,textarea')].filter(e => !e.labels.length)"
    assert await tab.evaluate(f"{unlabelled}.length") == 0


async def shot(tab: Tab, name: str) -> None:
    """Keep a picture where somebody asked for them."""
    if folder := os.environ.get("SCREENSHOTS"):
        picture = await tab.send("Page.captureScreenshot")
        Path(folder, name).write_bytes(base64.b64decode(picture["data"]))


@needs_browser
def test_a_wrong_key_is_said_and_the_right_one_stays_in_the_tab(address: str) -> None:
    assert BROWSER is not None

    async def use(browser: str) -> None:
        async with opened(browser, address) as tab:
            await tab.evaluate("document.getElementById('prompt').focus()")
            assert await asked(tab, "x") == "401: no valid API key"
            assert "API key" in await tab.evaluate("document.getElementById('health').textContent")
            await tab.evaluate("document.getElementById('key').focus()")
            await tab.write(KEY)
            await tab.press("Tab", 9)
            await tab.send("Page.reload")
            await tab.until("document.getElementById('health')?.textContent === 'Ready'")
            assert await tab.evaluate("localStorage.length") == 0
            assert await tab.evaluate("document.cookie") == ""

    asyncio.run(use(BROWSER))


@needs_browser
def test_nothing_runs_but_the_pages_own_script(address: str) -> None:
    assert BROWSER is not None

    async def use(browser: str) -> None:
        async with opened(browser, address) as tab:
            await tab.evaluate(
                "const s = document.createElement('script'); s.textContent = 'window.evil = 1';"
                "document.body.append(s)"
            )
            assert await tab.evaluate("window.evil === undefined")
            outside = "fetch('http://127.0.0.1:9/').then(() => 'reached', e => 'blocked')"
            assert await tab.evaluate(outside) == "blocked"
            assert any("Content Security Policy" in line for line in tab.console)

    asyncio.run(use(BROWSER))


_WORST_CONTRAST = """
(() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map((v) => {
      const c = v / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)" && color !== "transparent") return color;
    }
    return "rgb(255, 255, 255)";
  };
  const shown = [...document.querySelectorAll("body *")].filter(
    (e) => e.tagName !== "SCRIPT" && e.getClientRects().length
      && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return Math.min(...shown.map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
})()
"""
