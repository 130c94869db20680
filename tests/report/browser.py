"""Chromium without a window, told what to do over a pipe (its DevTools protocol): opens a page, clicks, reads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_WRAPPED = 'exec "$0" "$@" 3<&{commands} 4>&{answers}'


class Browser:
    """One page in a browser.

    Args:
        commands: Where commands are written.
        answers: Where answers are read.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._out, self._in = os.fdopen(commands, "wb", buffering=0), os.fdopen(answers, "rb", buffering=0)
        self._number, self._rest, self._session = 0, b"", ""

    def open(self, page: Path) -> None:
        """Open a file and wait until its charts are drawn."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.navigate", url=page.as_uri())
        self.wait("document.querySelector('#chart .scatterlayer .trace') !== null")

    def read(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        return self._ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.read(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.1)

    def click(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window and press its left button there."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            held = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)
            time.sleep(0.1)

    def _ask(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            asked["sessionId"] = self._session
        self._out.write(json.dumps(asked).encode() + b"\0")
        while True:
            answer = self._answer()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _answer(self) -> Any:
        while b"\0" not in self._rest:
            some = self._in.read(1 << 16)
            assert some, "Chromium ended"
            self._rest += some
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Run Chromium without a network while the block runs; skip the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here; make test-all installs it")
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    options = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,1600",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    )
    command = ["bash", "-c", _WRAPPED.format(commands=theirs_in, answers=theirs_out), program, *options]
    process = subprocess.Popen(
        [*command, "--remote-debugging-pipe", f"--user-data-dir={profile}"], pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    found = Browser(ours_out, ours_in)
    try:
        yield found
    finally:
        process.terminate()
        process.wait(timeout=30)
        found._out.close()
        found._in.close()
