"""A real Chromium over its debugging protocol: opens pages, clicks and types as a person does, notes what went wrong."""

import asyncio
import base64
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-port=0",
)


class Page:
    """`problems` are console errors, exceptions and blocked or failed requests; `addresses` is all that was asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.problems: list[str] = []
        self.addresses: list[str] = []

    async def read(self) -> None:
        async for frame in self._socket:
            message = json.loads(frame.data)
            if "id" in message:
                self._waiting.pop(message["id"]).set_result(message)
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, said: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.problems.append(str(said["exceptionDetails"].get("exception", {}).get("description", said)))
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "assert"):
                self.problems.append(str([value.get("value") or value.get("description") for value in said["args"]]))
            case "Log.entryAdded" if said["entry"]["level"] == "error":
                self.problems.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.addresses.append(said["request"]["url"])

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        waiting = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(waiting, 30)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    async def look(self, *, width: int, height: int, dark: bool) -> None:
        mobile = width < 700
        await self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        said = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def until(self, script: str, timeout_s: float = 20.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not await self.run(f"Boolean({script})"):  # noqa: ASYNC110  the page is another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.run("document.body.innerText")
            raise AssertionError(f"never true: {script}\n{text}\n{self.problems}") from None

    async def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first match, which must be there and on top."""
        chosen = json.dumps(selector)
        await self.until(f"document.querySelector({chosen})")
        await self.run(f"document.querySelector({chosen}).scrollIntoView({{block: 'center', inline: 'center'}})")
        x, y = await self.run(
            f"(() => {{const b = document.querySelector({chosen}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def key(self, key: str, code: int) -> None:
        text = {"Enter": "\r"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    async def write(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def picture(self, file: Path) -> None:
        said = await self.send("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        file.write_bytes(base64.b64decode(said["data"]))  # noqa: ASYNC240  a few kilobytes


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """One page in a fresh profile below `folder`; gone afterwards."""
    assert CHROMIUM
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *_FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    try:
        async with asyncio.timeout(60):
            port = await _port(process.stderr)
        drain = asyncio.create_task(_drain(process.stderr))
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                target = next(one for one in await answer.json() if one["type"] == "page")
            async with http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                reading = asyncio.create_task(page.read())
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.send(f"{domain}.enable")
                yield page
                reading.cancel()
        drain.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _port(lines: asyncio.StreamReader) -> int:
    async for line in lines:
        if found := re.search(rb"DevTools listening on ws://[^:]+:(\d+)/", line):
            return int(found[1])
    raise AssertionError("Chromium ended before it listened")


async def _drain(lines: asyncio.StreamReader) -> None:
    async for _ in lines:
        pass
