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
from collections import deque
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
ENCODERS, MOST_TO_ENCODE = 4, 64  # threads beside the worker; what may wait for one of them
TOO_MUCH = "The server has too much to do just now; try again in a moment."
GIVES_WAY_SECONDS = 30.0  # a viewer who has been away for so long does not keep others from beginning
SESSION_LIMIT = "This server has as many pictures open as it may; try again later."


class LiveHub:
    """Used as ``async with app.live:`` around an application's life, or started by whoever comes first.

    ``stop`` leaves it ready to be started again: nothing of a run but its counters is kept.
    """

    def __init__(self, models: Sequence[Model], limits: Limits, idle_seconds: float) -> None:
        self.models, self.limits, self.metrics = ServedModels(models, limits.points), limits, Metrics()
        self._shared = Shared(self.models, self.metrics, idle_seconds, self._room, self._enter, self._ended)
        self._sessions: dict[str, LiveSession] = {}  # those that show a picture
        self._beginning: set[LiveSession] = set()  # whose first picture has not been opened: they have no place yet
        self._viewers: set[Viewer] = set()
        self._strangers: dict[Viewer, None] = {}  # who has not said hello yet, the first first
        self._lock = threading.Lock()
        self._worker: LiveWorker | None = None
        self._ready = False
        self._halted = False
        self._ending: LiveWorker | None = None  # of the run before: no other begins until its thread has ended
        self._stop_by = 0.0  # how long that is waited for
        self._awaited: set[Future[Any]] = set()  # what requests wait for
        self._to_encode: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._encoders: set[threading.Thread] = set()
        # A thread inside torch must not outlive the interpreter.
        atexit.register(_stop_at_exit, weakref.ref(self))

    # --- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the worker unless it runs; it packs weights and makes a first picture of each model at once."""
        with self._lock:
            if self._worker is not None or self._halted or (self._ending is not None and not self._ending.ended):
                return
            self._ending, self._shared.running = None, 0
            self._worker = worker = LiveWorker()
            worker.start()
            worker.compute(self._warm_up(worker))

    def _warm_up(self, worker: LiveWorker) -> Iterator[None]:
        for name in self.models.names:
            model = self.models.get(name)
            try:
                self.models.from_seed(model, 0, 0.7, 0 if model.config.c_dim else None).preview()
            except Exception:  # whoever asks for a picture will be told
                logger.exception("the model %s could not be prepared", name)
            yield
        with self._lock:
            if self._worker is worker:  # it may have been halted meanwhile
                self._ready = True

    @property
    def ready(self) -> bool:
        """Whether pictures are made at once: the worker runs and has prepared the models."""
        return self._ready and self._worker is not None and self._worker.alive

    def halt(self) -> None:
        """Sends all viewers away, refuses what requests wait for, and lets the worker end after its present step; waits
        for nothing. Until ``stop`` nothing begins anew."""
        with self._lock:
            if self._halted:
                return
            worker, self._worker, self._ready = self._worker, None, False
            if worker is not None:  # else that of the run before may still be ending
                self._ending = worker
            self._halted, self._stop_by = True, time.monotonic() + STOP_SECONDS
            viewers, awaited = list(self._viewers), list(self._awaited)
            self._sessions.clear()
            self._beginning.clear()
            self._to_encode.clear()
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
        time. It can be started again, once that step has ended."""
        self.halt()
        with self._lock:
            worker, until, encoders = self._ending, self._stop_by, list(self._encoders)
        ended = worker is None or worker.stop(max(0.0, until - time.monotonic()))
        with self._lock:
            self._halted = False
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
            greeted, beginning = viewer in self._viewers, live in self._beginning
            self._viewers.discard(viewer)
            if live is not None:
                self._beginning.discard(live)
            if live is not None and live.owner is viewer:
                live.owner, live.left_at = None, time.monotonic()
        if greeted:
            self.metrics.viewers.dec()
        if live is not None:
            self.post(live, live.end if beginning else partial(live.detach, viewer))

    def new_session(self, viewer: Viewer) -> LiveSession:
        """An empty session for this viewer, which takes a place once its first picture has been opened. Raises
        ProtocolError if there is none to be had, Busy if the server is stopping."""
        worker = self.worker
        live = LiveSession(secrets.token_urlsafe(16), self._shared)
        live.owner = viewer
        live.post(partial(live.attach, viewer))
        self._room()
        with self._lock:
            if self._worker is not worker:
                raise Busy(STOPPING)
            self._beginning.add(live)
            worker.add(live)
        return live

    def _room(self) -> None:
        """Raises ProtocolError if a first picture would find no place just now."""
        with self._lock:
            self._giving_way()

    def _giving_way(self) -> LiveSession | None:
        """Who makes room for one more: nobody where there is a place, else of those whose viewers have been away for
        some time the one that has waited the longest. Raises ProtocolError if there is none. Under the lock."""
        if len(self._sessions) < self.limits.sessions:
            return None
        before = time.monotonic() - GIVES_WAY_SECONDS
        away = [live for live in self._sessions.values() if live.owner is None and live.left_at <= before]
        if not away:
            raise ProtocolError("limit", SESSION_LIMIT)
        return min(away, key=lambda live: live.left_at)

    def _enter(self, live: LiveSession) -> None:
        """Its first picture could be opened, and takes a place (called by the worker). Raises ProtocolError if there
        is none any more. Nobody gives way to what is then refused."""
        with self._lock:
            if live not in self._beginning:
                return  # its viewer has closed it or gone, or all is being stopped: it ends with what it is told next
            displaced = self._giving_way()
            if displaced is not None:
                del self._sessions[displaced.id]  # from here on nobody can come back to it
            self._beginning.discard(live)
            self._sessions[live.id] = live
            count = len(self._sessions)
        if displaced is not None:
            self.post(displaced, displaced.end)
        self.metrics.sessions(count)

    def resume(self, session_id: str, viewer: Viewer) -> LiveSession | None:
        """The session of this id, handed to this viewer; None if there is none."""
        with self._lock:  # subtle: _ended looks at its commands under the same lock
            live = self._sessions.get(session_id)
            if live is None:
                return None
            live.owner = viewer
            live.post(partial(live.attach, viewer))
        self.wake()
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
            self._beginning.discard(live)
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
            self._beginning.discard(live)
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
        """The function's result, computed beside the worker, in one of a few threads. Raises Busy if too much waits.

        Not in asyncio's threads: the program could not end before a film were encoded that nobody waits for any more.
        """
        done: Future[T] = Future()
        with self._lock:
            if self._halted:
                raise Busy(STOPPING)
            if len(self._to_encode) >= MOST_TO_ENCODE:
                raise Busy(TOO_MUCH)
            if len(self._encoders) < ENCODERS:
                thread = threading.Thread(target=self._encode, name="draggan-fast-encoder", daemon=True)
                thread.start()  # it waits for the lock
                self._encoders.add(thread)
            self._to_encode.append((function, done))
        return await self._outcome(done)

    def _encode(self) -> None:
        """An encoder's life: as long as there is something to do."""
        while True:
            with self._lock:
                if not self._to_encode:
                    self._encoders.discard(threading.current_thread())
                    return
                function, done = self._to_encode.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(function())
            except BaseException as error:  # it belongs to whoever asked
                done.set_exception(error)

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
            if self._halted:
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
