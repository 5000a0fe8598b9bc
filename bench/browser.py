"""Chromium on the page of ``draggan-fast serve``, driven by Playwright: for its tests, its benchmark, its recording.

Playwright brings no browser here: the system's Chromium is used (Debian's package ``chromium``), or the one that
``DRAGGAN_FAST_BROWSER`` names.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from draggan_fast import DragError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing but the page may use the network or the disk: what a test sees must be the page's doing.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
START_SECONDS = 90.0
STOP_SECONDS = 10.0

Point = tuple[float, float]


def find_chromium() -> str | None:
    """The browser to use, or None. A name in ``DRAGGAN_FAST_BROWSER`` that is none raises DragError."""
    if wish := os.environ.get("DRAGGAN_FAST_BROWSER"):
        found = shutil.which(wish)
        if found is None:
            raise DragError(f"DRAGGAN_FAST_BROWSER names {wish!r}, which is not a program here.")
        return found
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def needed_chromium() -> str:
    """The browser to use. Raises DragError where there is none."""
    path = find_chromium()
    if path is None:
        raise DragError("No Chromium was found: install Debian's package chromium, or name it in DRAGGAN_FAST_BROWSER.")
    return path


CAP_SYS_NICE, PR_CAPBSET_DROP = 23, 24  # linux/capability.h, linux/prctl.h


def deny_raised_priority() -> None:
    """What this thread starts from now on runs at its own priority at best, as what an ordinary user starts does.

    Started by root, as in a container, Chromium raises itself to nice −8, and whoever computes the pictures on the same
    cores waits for it: a page that nobody but root would see. Nothing is done where there is nothing to deny.
    """
    if sys.platform == "linux" and os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0) != 0:
            reason = os.strerror(ctypes.get_errno())
            print(f"Chromium may raise its own priority: that could not be denied ({reason}).", file=sys.stderr)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium: Playwright's ``Browser``. Raises DragError where there is no browser or no Playwright."""
    path = needed_chromium()
    try:
        from playwright.sync_api import sync_playwright  # late: an extra
    except ImportError:
        raise DragError("Driving a browser needs Playwright: pip install 'draggan-fast[dev]'.") from None
    deny_raised_priority()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield chromium
        finally:
            chromium.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class LiveServer:
    """``draggan-fast serve`` as a process of its own, on loopback. It can be killed and started anew on its port."""

    def __init__(self, arguments: Sequence[str] = (), port: int | None = None) -> None:
        self.port = port or free_port()
        self.arguments = tuple(arguments)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Returns when it answers. Raises DragError if it ends before, or takes too long."""
        command = [sys.executable, "-m", "draggan_fast", "serve", "--port", str(self.port), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise DragError(f"The server ended at once, with exit code {self.process.returncode}.")
            try:
                with urllib.request.urlopen(f"{self.url}healthz", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        self.kill()
        raise DragError(f"The server did not answer within {START_SECONDS:.0f} seconds.")

    def kill(self) -> None:
        """Without a word to its clients, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def __enter__(self) -> LiveServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class LivePage:
    """The page in a tab: opened, waited for, pulled at. Points are (x, y) in pixels of the picture.

    page: Playwright's ``Page``.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url

    def open(self, fragment: str = "", seconds: float = 30.0) -> LivePage:
        """Goes there and waits for the first picture."""
        self.page.goto(self.url + fragment)
        self.wait_for_picture(seconds)
        return self

    def wait_for_picture(self, seconds: float = 30.0) -> None:
        self.page.locator("drag-canvas canvas.shown").wait_for(timeout=seconds * 1000)

    def element(self, expression: str) -> Any:
        """A JavaScript expression in which ``element`` is the <drag-canvas>."""
        code = f"const element = document.querySelector('drag-canvas'); return {expression};"
        return self.page.evaluate(f"() => {{ {code} }}")

    def until(self, expression: str, seconds: float = 60.0) -> Any:
        """Waits until such an expression is true, and returns its value. Raises DragError if it never is."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.element(expression):
                return value
            time.sleep(0.02)
        raise DragError(f"The page was not at {expression!r} within {seconds:g} seconds.")

    def until_state(self, *states: str, seconds: float = 20.0) -> str:
        """Waits for one of these states of the drag (docs/protocol.md, ``status``)."""
        return str(self.until(f"{list(states)!r}.includes(element.status?.state) && element.status.state", seconds))

    def until_rest(self, seconds: float = 90.0) -> None:
        """Waits until the server has answered everything, nothing moves any more, and the last picture is shown."""
        states = ["idle", "done", "limit", "paused", "failed"]
        # After a preview the picture follows in full.
        shown = "!element.frame.running && !element.frame.preview && element.frame.step === element.status.step"
        self.until(f"element.settled && {states!r}.includes(element.status.state) && {shown}", seconds)

    def at(self, point: Point) -> Point:
        """Where on the page this point of the picture is, in CSS pixels."""
        box = "element.getBoundingClientRect()"
        screen = f"element.viewport.toScreen({[float(v) for v in point]})"
        left, top, x, y = self.element(f"[{box}.left, {box}.top, ...{screen}]")
        return left + x, top + y

    def click(self, point: Point) -> None:
        self.page.mouse.click(*self.at(point))

    def press(self, point: Point) -> None:
        self.page.mouse.move(*self.at(point))
        self.page.mouse.down()

    def move(self, point: Point) -> None:
        self.page.mouse.move(*self.at(point))

    def release(self) -> None:
        self.page.mouse.up()

    def pull(self, start: Point, end: Point, seconds: float = 0.6, moves: int = 12) -> None:
        """Presses, moves in a straight line and holds there; ``release`` is the caller's."""
        self.press(start)
        for index in range(1, moves + 1):
            share = index / moves
            self.move((start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share))
            time.sleep(seconds / moves)

    def picture(self) -> bytes:
        """What is shown, without marks: a PNG."""
        import base64

        data = self.element("element.shadowRoot.querySelector('.picture').toDataURL('image/png')")
        return base64.b64decode(data.partition(",")[2])
