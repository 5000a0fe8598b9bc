"""One viewer as the worker sees it: what waits to be sent to it. Of frames that is the latest, never a queue."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from .protocol import CLOSE_POLICY, Frame, View

WINDOW = 2  # frames on the way at most
MAX_WAITING = 2000  # messages of a client that sends and never reads


@dataclass
class ViewSettings:
    """What this viewer is sent; read and written by the worker."""

    fps: float = 30.0
    format: str = "jpeg"
    quality: int = 90
    preview: str = "auto"

    @property
    def period(self) -> float:
        """Seconds from frame to frame."""
        return 1 / self.fps


class Viewer:
    """The worker calls ``tell``, ``wants_frame``, ``offer`` and ``close``, the socket's loop the rest."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.view = ViewSettings()
        self.ready = asyncio.Event()
        self.closing: tuple[int, str] | None = None
        self.replaced = 0  # frames that a newer one made obsolete before they were sent
        self._loop = loop
        self._lock = threading.Lock()
        self._messages: deque[dict[str, Any]] = deque()
        self._frame: Frame | None = None
        self._sent = self._acked = 0

    def look(self, message: View) -> None:
        """Takes over what the message says; it was checked when it was parsed."""
        for name in ("fps", "format", "quality", "preview"):
            if (value := getattr(message, name)) is not None:
                setattr(self.view, name, value)

    def tell(self, *messages: dict[str, Any]) -> None:
        with self._lock:
            self._messages.extend(messages)
            if len(self._messages) > MAX_WAITING and self.closing is None:
                self.closing = (CLOSE_POLICY, "This client does not read its messages.")
        self._wake()

    def wants_frame(self) -> bool:
        """Whether a frame offered now would be sent: not while ``WINDOW`` of them are on the way."""
        with self._lock:
            return self.closing is None and self._sent - self._acked + (self._frame is not None) < WINDOW

    def offer(self, frame: Frame) -> None:
        with self._lock:
            self.replaced += self._frame is not None
            self._frame = frame
        self._wake()

    def close(self, code: int, reason: str) -> None:
        with self._lock:
            if self.closing is None:
                self.closing = (code, reason)
        self._wake()

    def ack(self, number: int) -> bool:
        """Frame ``number`` has been painted; False if it was never sent."""
        with self._lock:
            if not 1 <= number <= self._sent:
                return False
            self._acked = max(self._acked, number)
            return True

    def take(self) -> tuple[list[dict[str, Any]], bytes | None]:
        """What is to be sent now, in this order; called by the loop after ``ready`` was set."""
        with self._lock:
            self.ready.clear()
            messages, frame = list(self._messages), self._frame
            self._messages.clear()
            self._frame = None
            if frame is None:
                return messages, None
            self._sent += 1
            number = self._sent
        arrived = frame.stamp_arrived
        return messages, frame.pack(number, 0.0 if arrived is None else (time.perf_counter() - arrived) * 1e3)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there any more
            self._loop.call_soon_threadsafe(self.ready.set)
