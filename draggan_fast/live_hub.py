"""All pictures of a server: who is in which, how many there may be, and the worker that computes them."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from .live_models import ServedModels
from .live_session import LiveSession, Said, Shared
from .live_viewer import Viewer
from .live_worker import Busy, LiveWorker
from .loading import Model
from .metrics import Metrics
from .protocol import CLOSE_GOING_AWAY, CLOSE_TRY_LATER, Limits, ProtocolError

logger = logging.getLogger("draggan_fast.live")
T = TypeVar("T")
STRANGERS = 32  # connections that have not said hello
VIEWERS_EACH = 4  # connections for each picture there may be: who waits for a place, comes back, or only looks
STOP_SECONDS = 0.6  # how long a step that is being computed may hold up the end
STOPPING = "The server is stopping."
GIVES_WAY_SECONDS = 30.0  # a viewer who has been away for so long does not keep others from beginning
SESSION_LIMIT = "This server has as many pictures open as it may; try again later."


class LiveHub:
    """Used as ``async with app.live:`` around an application's life, or started by whoever comes first.

    ``stop`` leaves it ready to be started again: nothing of a run but its counters is kept.
    """

    def __init__(self, models: Sequence[Model], limits: Limits, idle_seconds: float) -> None:
        self.models, self.limits, self.metrics = ServedModels(models, limits.points), limits, Metrics()
        self._shared = Shared(self.models, self.metrics, idle_seconds, self._ended)
        self._sessions: dict[str, LiveSession] = {}
        self._viewers: set[Viewer] = set()
        self._strangers: dict[Viewer, None] = {}  # who has not said hello yet, the first first
        self._lock = threading.Lock()
        self._worker: LiveWorker | None = None
        self._ready = False
        self._halted: tuple[LiveWorker | None, float] | None = None  # the worker that ends, and how long to wait for it
        self._awaited: set[Future[Any]] = set()  # what requests wait for
        self._apart: set[threading.Thread] = set()
        # A thread inside torch must not outlive the interpreter.
        atexit.register(_stop_at_exit, weakref.ref(self))

    # --- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the worker unless it runs; it packs weights and makes a first picture of each model at once."""
        with self._lock:
            if self._worker is not None or self._halted is not None:
                return
            self._worker = worker = LiveWorker()
        worker.start()
        worker.compute(self._warm_up())

    def _warm_up(self) -> Iterator[None]:
        for name in self.models.names:
            model = self.models.get(name)
            try:
                self.models.from_seed(model, 0, 0.7, 0 if model.config.c_dim else None).preview()
            except Exception:  # whoever asks for a picture will be told
                logger.exception("the model %s could not be prepared", name)
            yield
        self._ready = True

    @property
    def ready(self) -> bool:
        """Whether pictures are made at once: the worker runs and has prepared the models."""
        return self._ready and self._worker is not None and self._worker.alive

    def halt(self) -> None:
        """Sends all viewers away, refuses what requests wait for, and lets the worker end after its present step; waits
        for nothing. Until ``stop`` nothing begins anew."""
        with self._lock:
            if self._halted is not None:
                return
            worker, self._worker, self._ready = self._worker, None, False
            self._halted = worker, time.monotonic() + STOP_SECONDS
            viewers, awaited = list(self._viewers), list(self._awaited)
            self._sessions.clear()
            self._shared.running = 0
        self.metrics.sessions(0)
        for viewer in viewers:
            viewer.close(CLOSE_GOING_AWAY, STOPPING)
        if worker is not None:
            worker.stop(0)
        for future in awaited:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(Busy(STOPPING))

    def stop(self) -> bool:
        """``halt``, and waits for the worker's present step; True if that, and what was being encoded, ended in
        time. It can be started again."""
        self.halt()
        with self._lock:
            (worker, until), self._halted = self._halted or (None, 0.0), None
            encoders = list(self._apart)
        ended = worker is None or worker.stop(max(0.0, until - time.monotonic()))
        return ended and not any(thread.is_alive() for thread in encoders)

    async def __aenter__(self) -> LiveHub:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    @property
    def worker(self) -> LiveWorker:
        self.start()
        worker = self._worker
        if worker is None:
            raise Busy(STOPPING)
        return worker

    # --- viewers and their pictures -----------------------------------------------------------------------------------

    def arrive(self, viewer: Viewer) -> None:
        """Somebody has connected. Of those who say nothing the first has to go when there are too many: they take
        nobody's place."""
        with self._lock:
            self._strangers[viewer] = None
            oldest = next(iter(self._strangers)) if len(self._strangers) > STRANGERS else None
            if oldest is not None:
                del self._strangers[oldest]
        if oldest is not None:
            oldest.close(CLOSE_TRY_LATER, "Too many connections wait for their hello.")

    def greet(self, viewer: Viewer) -> None:
        """hello was right. Raises ProtocolError if there are viewers enough for all pictures several times over."""
        with self._lock:
            self._strangers.pop(viewer, None)
            if len(self._viewers) >= VIEWERS_EACH * self.limits.sessions:
                raise ProtocolError("limit", "Too many viewers are connected.")
            self._viewers.add(viewer)
        self.metrics.viewers.inc()

    def leave(self, viewer: Viewer, live: LiveSession | None) -> None:
        with self._lock:
            self._strangers.pop(viewer, None)
            greeted = viewer in self._viewers
            self._viewers.discard(viewer)
            if live is not None and live.owner is viewer:
                live.owner, live.left_at = None, time.monotonic()
        if greeted:
            self.metrics.viewers.dec()
        if live is not None:
            self.post(live, partial(live.detach, viewer))

    def new_session(self, viewer: Viewer) -> LiveSession:
        """An empty session for this viewer; raises ProtocolError if there are as many as there may be.

        Of those whose viewers have been away for some time, the one that has waited the longest gives its place.
        """
        worker = self.worker
        live, displaced = LiveSession(secrets.token_urlsafe(16), self._shared), None
        with self._lock:
            if len(self._sessions) >= self.limits.sessions:
                displaced = self._longest_away()
                if displaced is None:
                    raise ProtocolError("limit", SESSION_LIMIT)
                del self._sessions[displaced.id]  # from here on nobody can come back to it
            self._sessions[live.id] = live
            live.owner = viewer
            count = len(self._sessions)
        if displaced is not None:
            displaced.post(displaced.end)
        self.metrics.sessions(count)
        live.post(partial(live.attach, viewer))
        worker.add(live)
        return live

    def _longest_away(self) -> LiveSession | None:
        """Who gives way; under the lock."""
        before = time.monotonic() - GIVES_WAY_SECONDS
        away = [live for live in self._sessions.values() if live.owner is None and live.left_at <= before]
        return min(away, key=lambda live: live.left_at, default=None)

    def resume(self, session_id: str, viewer: Viewer) -> LiveSession | None:
        """The session of this id, handed to this viewer; None if there is none."""
        with self._lock:  # subtle: _ended looks at its commands under the same lock
            live = self._sessions.get(session_id)
            if live is None or live.drag is None:
                return None
            live.owner = viewer
            live.post(partial(live.attach, viewer))
        self.worker.wake()
        return live

    def find(self, session_id: str) -> LiveSession | None:
        """The session of this id if it shows a picture."""
        with self._lock:
            live = self._sessions.get(session_id)
        return live if live is not None and live.drag is not None else None

    def forget(self, live: LiveSession) -> None:
        """Its id leads nowhere from now on."""
        with self._lock:
            self._sessions.pop(live.id, None)
            count = len(self._sessions)
        self.metrics.sessions(count)

    def post(self, live: LiveSession, command: Said | Callable[[], None]) -> None:
        live.post(command)
        if (worker := self._worker) is not None:
            worker.wake()

    def wake(self) -> None:
        if (worker := self._worker) is not None:
            worker.wake()

    def _ended(self, live: LiveSession) -> bool:
        """A session has ended (called by the worker)."""
        with self._lock:
            if live.commands and live.id in self._sessions:
                return False  # somebody has just come back to it
            self._sessions.pop(live.id, None)
            count, worker = len(self._sessions), self._worker
        if worker is not None:
            worker.remove(live)
        self.metrics.sessions(count)
        return True

    # --- work for HTTP ------------------------------------------------------------------------------------------------

    async def call(self, function: Callable[[], T]) -> T:
        """The function's result, computed by the worker."""
        return await self._outcome(self.worker.call(function))

    async def compute(self, pieces: Iterator[Any]) -> Any:
        """What a generator returns, computed by the worker; others have their turns between its yields."""
        return await self._outcome(self.worker.compute(pieces))

    async def apart(self, function: Callable[[], T]) -> T:
        """The function's result, computed beside the worker, in a thread of its own.

        Not in one of asyncio's: the program could not end before a film were encoded that nobody waits for any more.
        """
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:  # it belongs to whoever asked
                done.set_exception(error)
            finally:
                with self._lock:
                    self._apart.discard(thread)

        thread = threading.Thread(target=run, name="draggan-fast-encoder", daemon=True)
        with self._lock:
            self._apart.add(thread)
        thread.start()
        return await self._outcome(done)

    async def _outcome(self, work: Future[T]) -> T:
        """What comes of it, or Busy as soon as the server stops."""
        outcome: Future[T] = Future()

        def pass_on(done: Future[T]) -> None:
            with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                if (error := done.exception()) is not None:
                    outcome.set_exception(error)
                else:
                    outcome.set_result(done.result())

        with self._lock:
            if self._halted is not None:
                raise Busy(STOPPING)
            self._awaited.add(outcome)
        work.add_done_callback(lambda done: None if done.cancelled() else pass_on(done))
        try:
            return await asyncio.wrap_future(outcome)
        finally:
            with self._lock:
                self._awaited.discard(outcome)
            work.cancel()  # of what has not begun, for who has gone away


def _stop_at_exit(reference: weakref.ref[LiveHub]) -> None:
    hub = reference()
    if hub is not None:
        hub.stop()
