"""Chromium without a window, driven over a pipe by its DevTools protocol: no other package is needed."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
    "--no-first-run", "--remote-debugging-pipe",
)  # fmt: skip

# Chromium reads commands from 3 and writes answers to 4.
LAUNCH = "import os, sys; [os.dup2(int(sys.argv[i]), 2 + i) for i in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"


class Browser:
    """One page of a browser.

    Attributes:
      events: all that the browser told, each {"method", "params"}.
    """

    def __init__(self, read: Any, write: Any):
        self._read, self._write, self._numbers = read, write, itertools.count(1)
        self._session, self._unread = None, b""
        self.events: list[dict[str, Any]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        command |= {"sessionId": self._session} if self._session else {}
        self._write.write(json.dumps(command).encode() + b"\0")
        self._write.flush()
        while (message := self._next()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            more = self._read.read1(1 << 20)
            assert more, "the browser has ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Shows a file in a window of a width, and waits until it is loaded."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
        self.do("Emulation.setEmulatedMedia", features=scheme)
        self.events.clear()
        self.do("Page.navigate", url=path.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"]["value"]

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.do("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        printed = self.do("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.7)
        return base64.b64decode(printed["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in the folder; it ends with the context."""
    assert PROGRAM
    to_read, write_end = os.pipe()
    read_end, to_write = os.pipe()
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_end, write_end)]  # none is 3 or 4
    os.close(read_end)
    os.close(write_end)
    command = [sys.executable, "-c", LAUNCH, *map(str, theirs), PROGRAM, *FLAGS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(command, pass_fds=theirs, stderr=subprocess.DEVNULL)
    for end in theirs:
        os.close(end)
    with os.fdopen(to_read, "rb") as read, os.fdopen(to_write, "wb") as write:
        try:
            yield Browser(read, write)
        finally:
            process.kill()
            process.wait()
