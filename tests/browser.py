"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import websocket_connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update")


class Browser:
    """One tab: what it requested, what its console said, and what a script in it returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        self._loop, self._ids, self._session = loop, itertools.count(1), ""
        self._socket = loop.run_until_complete(_connected(address))
        self.requests: list[str] = []
        self.console: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        message: dict[str, Any] = {"id": next(self._ids), "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._loop.run_until_complete(_sent(self._socket, message))
        while (answer := self._read()).get("id") != message["id"]:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        message: dict[str, Any] = self._loop.run_until_complete(_read(self._socket))
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.console.append(json.dumps(params))
        if message.get("method") == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
        return message

    def open(self, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
        """Load a file in a window of this width, in a light or dark scheme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def js(self, expression: str) -> Any:
        """Return the value of an expression, or what its promise resolves to."""
        wait = {"returnByValue": True, "awaitPromise": True}
        result = self.call("Runtime.evaluate", expression=expression, **wait)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def complaints(self) -> list[str]:
        """Return what the console said, less what scripts only note."""
        notes = ('{"type": "log"', '{"type": "debug"', '{"type": "info"')
        return [text for text in self.console if not text.startswith(notes)]

    def picture(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Close the connection."""
        self._loop.run_until_complete(_closed(self._socket))


async def _connected(address: str) -> Any:
    return await websocket_connect(address, max_message_size=2**28)


async def _sent(socket: Any, message: dict[str, Any]) -> None:
    await socket.write_message(json.dumps(message))


async def _read(socket: Any) -> Any:
    return json.loads(await asyncio.wait_for(socket.read_message(), 120))


async def _closed(socket: Any) -> None:
    socket.close()
    while await socket.read_message() is not None:
        pass


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium with one tab, and end it."""
    assert CHROMIUM is not None
    folder, loop = tempfile.mkdtemp(), asyncio.new_event_loop()
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, *QUIET, "--remote-debugging-port=0", f"--user-data-dir={folder}"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stderr is not None
        address = next(filter(None, (re.search(r"ws://\S+", line) for line in process.stderr)))
        tab = Browser(loop, address[0])
        yield tab
        tab.close()
    finally:
        loop.close()
        process.terminate()
        process.communicate(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)
