"""A browser that nobody looks into: Chromium by its own protocol (DevTools), for measuring.

Playwright listens to everything a page does: each frame on a socket is told to it with its content, at the
cost of what is measured on the same cores. Here nothing is switched on but what is asked for: scripts, and the pointer.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from draggan_fast import DragError

from .browser import FLAGS, START_SECONDS, LivePage, deny_raised_priority, needed_chromium

# A page that nobody sees must not be slowed down for it.
AWAKE = (
    "--headless", "--disable-background-timer-throttling", "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding", "--hide-scrollbars", "--mute-audio", "--no-default-browser-check",
)  # fmt: skip
ANSWER_SECONDS = 30.0


class Mouse:
    """As Playwright's, but a move is not waited for: a hand does not wait either."""

    def __init__(self, page: PlainPage) -> None:
        self._page = page
        self._at = (0.0, 0.0)
        self._pressed = False

    def move(self, x: float, y: float) -> None:
        self._at = (x, y)
        self._say("mouseMoved")

    def down(self) -> None:
        self._pressed = True
        self._say("mousePressed")

    def up(self) -> None:
        self._pressed = False
        self._say("mouseReleased")

    def _say(self, kind: str) -> None:
        moved = kind == "mouseMoved"
        self._page.post(
            "Input.dispatchMouseEvent",
            type=kind, x=self._at[0], y=self._at[1], buttons=int(self._pressed),
            button="none" if moved and not self._pressed else "left", clickCount=0 if moved else 1,
        )  # fmt: skip


class PlainPage:
    """One tab: so much of Playwright's ``Page`` as ``LivePage`` and the benchmark use."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.mouse = Mouse(self)

    def post(self, method: str, **parameters: Any) -> int:
        """Sends a command and returns its number; its answer is passed over."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        return number

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's answer. Raises DragError if it is an error, or does not come."""
        number = self.post(method, **parameters)
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            while True:
                answer = json.loads(self._socket.recv(timeout=deadline - time.monotonic()))
                if answer.get("id") == number:
                    break
        except TimeoutError:
            raise DragError(f"Chromium did not answer {method} within {ANSWER_SECONDS:.0f} seconds.") from None
        if "error" in answer:
            raise DragError(f"Chromium refused {method}: {answer['error'].get('message')}.")
        result: dict[str, Any] = answer["result"]
        return result

    def evaluate(self, function: str) -> Any:
        """What a JavaScript function without arguments returns. Raises DragError if it throws."""
        answer = self.call("Runtime.evaluate", expression=f"({function})()", returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise DragError(f"In the page: {details.get('exception', {}).get('description', details.get('text'))}.")
        return answer["result"].get("value")

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)


class PlainLivePage(LivePage):
    """``LivePage`` in such a tab."""

    def wait_for_picture(self, seconds: float = 30.0) -> None:
        shown = "() => !!document.querySelector('drag-canvas')?.shadowRoot?.querySelector('canvas.shown')"
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(shown):
            if time.monotonic() > deadline:
                raise DragError(f"The page showed no picture within {seconds:g} seconds.")
            time.sleep(0.05)


@contextmanager
def plain_browser(width: int, height: int) -> Iterator[tuple[PlainPage, str]]:
    """(a tab of this size, the browser's version). Raises DragError where there is no browser, or it does not start."""
    path = needed_chromium()
    try:
        from websockets.sync.client import connect  # late: an extra
    except ImportError:
        raise DragError("Driving a browser needs websockets: pip install 'draggan-fast[serve]'.") from None
    deny_raised_priority()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [path, *FLAGS, *AWAKE, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = _port(Path(profile) / "DevToolsActivePort", process)
            version = _asked(port, "version")["Browser"].partition("/")[2]
            tab = next(target for target in _asked(port, "list") if target["type"] == "page")
            with connect(tab["webSocketDebuggerUrl"], max_size=None, max_queue=None, compression=None) as socket:
                page = PlainPage(socket)
                page.call(
                    "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
                )
                yield page, version
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    """Where it listens: it writes that down. Raises DragError if it ends before, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DragError(f"Chromium ended at once, with exit code {process.returncode}.")
        if file.exists() and (lines := file.read_text().split()):
            return int(lines[0])
        time.sleep(0.05)
    raise DragError(f"Chromium did not start within {START_SECONDS:.0f} seconds.")


def _asked(port: int, what: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/{what}", timeout=10) as answer:
        return json.load(answer)
