"""The one thread that owns the device: it gives whoever wants to compute a turn, in fair order and bounded time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from .errors import DragError

logger = logging.getLogger("draggan_fast.live")
T = TypeVar("T")
ROUND = 1 / 30  # seconds that a round of all who want a turn may take, as far as single steps allow
LEAST_SLICE = 0.002
MAX_JOBS = 64


class Task(Protocol):
    """Somebody who sometimes wants to compute. Times are those of ``time.monotonic``."""

    def wakes_at(self) -> float | None:
        """When it wants a turn: in the past = now, None = not before ``LiveWorker.wake`` is called."""
        ...

    def turn(self, until: float) -> None:
        """Computes until about then, and always something. Must not raise."""
        ...


class Busy(DragError):
    """There are more jobs than the worker takes."""


class Jobs:
    """Work that belongs to no session's turn (exports, thumbnails), a piece at a time, the oldest first."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Iterator[Any], Future[Any]]] = deque()

    def wakes_at(self) -> float | None:
        return 0.0 if self.waiting else None

    def turn(self, until: float) -> None:
        while self.waiting:
            pieces, future = self.waiting[0]
            if future.cancelled():
                self.waiting.popleft()
                continue
            try:
                next(pieces)
            except StopIteration as end:
                self.waiting.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_result(end.value)
            except BaseException as error:  # it belongs to whoever asked
                self.waiting.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            if time.monotonic() >= until:
                return

    def give_up(self) -> None:
        while self.waiting:
            _, future = self.waiting.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(Busy("The server is stopping."))


class LiveWorker:
    """Runs tasks in turns in a thread of its own. ``start`` once; ``stop`` ends it after the present step."""

    def __init__(self) -> None:
        self._jobs = Jobs()
        self._tasks: list[Task] = [self._jobs]
        self._condition = threading.Condition()
        self._woken = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="draggan-fast-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    @property
    def ended(self) -> bool:
        """Whether its thread has run and computes no more."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def stop(self, timeout: float) -> bool:
        """Ends the thread; True if it has ended in time (a step that is being computed is not cut short)."""
        with self._condition:
            self._stopping = self._woken = True
            self._condition.notify()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        if not self._thread.is_alive():
            self._jobs.give_up()
        return not self._thread.is_alive()

    def add(self, task: Task) -> None:
        with self._condition:
            self._tasks.append(task)
        self.wake()

    def remove(self, task: Task) -> None:
        with self._condition:
            if task in self._tasks:
                self._tasks.remove(task)

    def wake(self) -> None:
        """Something has changed: ask the tasks anew."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """The function's result, computed by the worker. Raises Busy if too much is waiting."""

        def once() -> Generator[None, None, T]:
            yield from ()
            return function()

        return self.compute(once())

    def compute(self, pieces: Iterator[Any]) -> Future[Any]:
        """What a generator returns; between its yields others have their turns. Raises Busy."""
        future: Future[Any] = Future()
        with self._condition:
            if self._stopping or len(self._jobs.waiting) >= MAX_JOBS:
                raise Busy("The server has too much to do just now; try again in a moment.")
            self._jobs.waiting.append((pieces, future))
        self.wake()
        return future

    def _run(self) -> None:
        while True:
            with self._condition:
                if self._stopping:
                    break
                self._woken = False
                tasks = list(self._tasks)
            now = time.monotonic()
            times = [(task, at) for task in tasks if (at := task.wakes_at()) is not None]
            ready = [task for task, at in times if at <= now]
            if not ready:
                with self._condition:
                    if not self._woken:
                        later = min((at for _, at in times), default=None)
                        self._condition.wait(None if later is None else max(0.0, later - now))
                continue
            share = max(LEAST_SLICE, ROUND / len(ready))
            for task in ready:
                if self._stopping:
                    break
                try:
                    task.turn(time.monotonic() + share)
                except Exception:  # a task answers for its own errors; the thread must live on all the same
                    logger.exception("a turn failed")
                    self.remove(task)
        self._jobs.give_up()
