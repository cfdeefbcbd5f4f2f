"""A headless Chromium driven over a pipe: what a page measures, says and looks like."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
).split()


def chromium() -> str | None:
    """The program, None where there is none; RECBOLE_PRUNE_CHROMIUM names another."""
    named = os.environ.get("RECBOLE_PRUNE_CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """A tab of a browser, by the messages of the Chrome DevTools Protocol.

    Attributes:
        complaints: errors and warnings of the page's scripts and of the browser about the page, as they come.
        requests: addresses that the page asked for.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = os.fdopen(reader, "rb"), os.fdopen(writer, "wb")
        self._number, self._session, self._buffer = 0, None, b""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._seen: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = self._reader.read1(1 << 16)
            assert block, "the browser has ended"
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        found = json.loads(message)
        self._note(found.get("method"), found.get("params", {}))
        return found

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event is not None:
            self._seen.append(event)
        if event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, file: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file in a window of so many pixels."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self._seen.clear()
        self.ask("Page.navigate", url=file.absolute().as_uri())
        while "Page.loadEventFired" not in self._seen:
            self._next()

    def value(self, script: str) -> Any:
        """What an expression of JavaScript gives, promises waited for."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """Write the page, or what of it is in the window, as PNG."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))["data"]
        file.write_bytes(base64.b64decode(data))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**size, "scale": 1}}


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with an empty profile in a folder; it ends with the block."""
    program = chromium()
    assert program is not None
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    # the protocol's ends are the descriptors 3 and 4 of the browser
    shell = f'exec "$@" 3<&{from_us} 4>&{to_us}'
    command = ["bash", "-c", shell, "bash", program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(
        command, pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        os.close(from_us)
        os.close(to_us)
        try:
            yield Page(from_browser, to_browser)
        finally:
            process.kill()
