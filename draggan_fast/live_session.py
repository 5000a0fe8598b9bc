"""A picture that is being edited in the server: messages applied, steps made, frames shown. Only the worker's thread
calls what is here, but for ``post`` and ``commands``."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from . import live_pictures, protocol
from .errors import DragError
from .live_models import ServedModels
from .live_screen import Screen
from .live_strokes import stroke_mask
from .live_timeline import Timeline, held_bytes
from .live_viewer import Viewer
from .metrics import Metrics
from .protocol import ProtocolError
from .session import DragSession
from .session_state import SessionState, changed_settings

logger = logging.getLogger("draggan_fast.live")
STATUS_SECONDS = 1.0  # between two of the messages that come while running
MAX_RECORD_BYTES = 24 << 20  # of steps and events, which are all kept: 25,000 steps each towards new targets
MAX_HELD_BYTES = 12 << 20  # of latents and masks in the timeline and the undo history
MAX_COMMANDS = 500  # of one session that wait for its turn
MAX_FEATURE_BYTES = 12 << 20  # of a picture's features while others have their turns
NO_PICTURE = "There is no picture yet: send create, or upload a session."


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


@dataclass
class Shared:
    """What all sessions of a server have in common.

    idle_seconds: how long a session is kept without a viewer. room: raises ProtocolError if a first picture would find
    no place. enter: gives a session that could open its first picture a place, or raises ProtocolError. ended: told of
    a session that has ended; it may refuse (False) because somebody has just come back to it. running: how many
    sessions are.
    """

    models: ServedModels
    metrics: Metrics
    idle_seconds: float
    room: Callable[[], None]
    enter: Callable[[LiveSession], None]
    ended: Callable[[LiveSession], bool]
    running: int = 0


@dataclass(frozen=True)
class Said:
    """A viewer's message that waits for the session's turn. arrived: by time.perf_counter."""

    viewer: Viewer
    message: protocol.Message
    arrived: float


def plain_targets(drag: DragSession, targets: tuple[protocol.Point, ...]) -> bool:
    """Whether these are as many as there are handles, all of them well inside the picture: in a microsecond, where
    ``check_targets`` takes twenty. What it does not tell is still to be checked."""
    handles, (height, width) = drag.state.handle_points, drag.image_size
    inside = all(0 <= x <= width - 1 and 0 <= y <= height - 1 for x, y in targets)
    return inside and handles is not None and handles.shape[1] == len(targets)


def record_bytes(state: SessionState) -> int:
    """About what the steps and events of a state take, by measurement; more if there were more points before."""
    points = 0 if state.handle_points is None else state.handle_points.shape[1]
    return len(state.trajectory) * (400 + 12 * points) + len(state.events) * (250 + 8 * points)


class LiveSession:
    """State machine: idle → running ⇄ waiting → paused, done, limit or failed (docs/protocol.md, ``status``)."""

    def __init__(self, session_id: str, shared: Shared) -> None:
        self.id, self.shared, self.metrics = session_id, shared, shared.metrics
        self.commands: deque[Said | Callable[[], None]] = deque()
        self.drag: DragSession | None = None
        self.viewer: Viewer | None = None
        self.owner: Viewer | None = None  # whose it is by what the event loop knows: the worker learns it in its turn
        self.screen = Screen(self.metrics)
        self.left_at = self._gone_since = time.monotonic()  # since then no owner, by the event loop and by the worker
        self._timeline: Timeline | None = None
        self._ready_since: float | None = None  # it has been wanting a turn since then
        self._next_status = 0.0
        self._session_due = self._scrubbing = False
        self._last_status: dict[str, Any] = {}
        self._feature_bytes = 0
        self.state = "idle"
        self._budget = self._steps_left = 0
        self._stamp: tuple[int, float | None] = (0, None)  # of the targets that the next step goes towards
        # Targets that are to be followed, their stamp, when it arrived.
        self._moving: tuple[tuple[protocol.Point, ...], int, float] | None = None
        self._clear_run()

    # --- the worker's view ------------------------------------------------------------------------------------------

    def post(self, command: Said | Callable[[], None]) -> None:
        """Lets the worker heed or call it in this session's next turn; from any thread."""
        self.commands.append(command)

    def obey(self) -> None:
        """The oldest command."""
        command = self.commands.popleft()
        if not (isinstance(command, Said) and isinstance(command.message, protocol.MoveTargets)):
            self.follow()
        if isinstance(command, Said):
            self.handle(command)
        else:
            command()

    def follow(self) -> None:
        """To the targets that were moved last: of those that waited behind each other only these are worth the work."""
        moving, self._moving = self._moving, None
        if moving is None:
            return
        targets, stamp, arrived = moving
        drag, timeline = self._required
        drag.move_targets(targets)
        timeline.amend(drag.state)
        self._stamp = (stamp, arrived)
        self._steps_left = self._budget
        if self.state == "waiting" or (self.state == "limit" and self._live):
            self._enter("running")
        elif self.state == "done":
            self._enter("paused")

    @property
    def _busy(self) -> bool:
        return bool(self.commands) or self.state == "running"

    def wakes_at(self) -> float | None:
        if self._busy:
            return 0.0
        if self.viewer is None:
            return self._gone_since + self.shared.idle_seconds
        return None if self.drag is None else self.screen.wakes_at(self.viewer)

    def turn(self, until: float) -> None:
        try:
            self._turn(until)
        except Exception as error:  # whatever it was: this picture stops, and is still there
            self._fail(self._failure(error))
            self._tell_status()

    def _turn(self, until: float) -> None:
        now = time.monotonic()
        if self._ready_since is not None:
            self.screen.stats.waited((now - self._ready_since) * 1e3)
            self._ready_since = None
        if not self.commands and self.viewer is None and now >= self._gone_since + self.shared.idle_seconds:
            self.shared.ended(self)
            return
        shown = max(now, self.screen.due)  # when the next frame is due
        while True:
            while self.commands:
                followed = self._moving
                self.obey()
                # Targets are quickly noted, and a turn that left some behind would go to where they no longer are.
                if self._moving is followed and time.monotonic() >= until:
                    break
            self.follow()
            if self.state == "running":
                self._step()
            # subtle: a step that would end later than it should begins only if most of it still fits
            later = time.monotonic() + self.screen.stats.step_seconds / 2
            if later > until or (self.state == "running" and later > shown) or not self._busy:
                break
        self._tell_status()
        self._show()
        if self.state == "running":
            self._ready_since = time.monotonic()
            if self.drag is not None and self.shared.running > 1 and self._feature_bytes > MAX_FEATURE_BYTES:
                self.drag.release()  # dearer steps, but not as many copies of them as there are sessions

    # --- viewers ----------------------------------------------------------------------------------------------------

    def attach(self, viewer: Viewer) -> None:
        """This viewer sees the picture from now on; a former one is sent away."""
        if self.viewer is not None and self.viewer is not viewer:
            self.viewer.close(protocol.CLOSE_REPLACED, "Another viewer has taken this picture over.")
        self.viewer = viewer
        self._last_status = {}
        if self.drag is not None:
            self._session_due = True
            self.screen.owe()
            self.screen.due = 0.0

    def detach(self, viewer: Viewer) -> None:
        """The viewer has gone away: the picture pauses, and is kept for a while."""
        if self.viewer is not viewer:
            return
        self.viewer, self._gone_since = None, time.monotonic()
        if self.drag is None:
            self.shared.ended(self)
            return
        self._pause()
        self.drag.release()

    def end(self) -> None:
        """For good, because its viewer says so or somebody else has been given its place."""
        self._pause()
        self.shared.ended(self)

    def handle(self, said: Said) -> None:
        """Applies one message (targets: when they are followed) and answers it; one that is refused changes nothing."""
        viewer, message = said.viewer, said.message
        if viewer is not self.viewer:
            return
        try:
            self._apply(message, said.arrived)
        except ProtocolError as error:
            answer = protocol.error(error.code, error.message, message.id)
        except DragError as error:
            answer = protocol.error("value", str(error), message.id)
        except Exception as error:
            answer = {**self._failure(error), **({} if message.id is None else {"id": message.id})}
        else:
            if message.id is not None:
                viewer.tell(protocol.ok(message.id))
            if self._moving is None:
                self._tell_status()
            return
        self.metrics.error(answer["code"])
        viewer.tell(answer)

    def _failure(self, error: Exception) -> dict[str, Any]:
        """What a client is told of an exception that is not its fault; the session lives on."""
        if out_of_memory(error):
            if self.drag is not None:
                self.drag.release()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return protocol.error("memory", "The device is out of memory; close other pictures, or try again.")
        logger.error("session failed", exc_info=error)
        return protocol.error("internal", f"Something went wrong in the server ({type(error).__name__}).")

    # --- messages ---------------------------------------------------------------------------------------------------

    def _apply(self, message: protocol.Message, arrived: float) -> None:
        match message:
            case protocol.Create():
                self._open(partial(self.shared.models.create, message))
            case protocol.Upload(kind=protocol.UPLOAD_SESSION):
                self._open(partial(self.shared.models.open, message.data))
            case protocol.View():
                self._look(message)
            case protocol.Close():
                self.end()
            case _:
                if self.drag is None:
                    raise ProtocolError("order", NO_PICTURE)
                self._edit(message, arrived)
        if not isinstance(message, protocol.Scrub):
            self._scrubbing = False

    def _edit(self, message: protocol.Message, arrived: float) -> None:
        """What needs a picture."""
        drag, timeline = self._required
        match message:
            case protocol.SetPoints():
                if message.handles:
                    drag.set_points(message.handles, message.targets)
                else:
                    drag.remove_points()
                self._stop("paused" if message.handles else "idle")
                timeline.amend(drag.state)
            case protocol.MoveTargets():
                if not plain_targets(drag, message.targets):
                    drag.check_targets(message.targets)  # says what is wrong with them
                self._moving = (message.targets, message.stamp, arrived)
            case protocol.Start():
                self._start(message.steps or drag.config.max_steps, message.live)
            case protocol.Step():
                self._start(message.count, live=False, ending="paused")
            case protocol.Pause():
                self._pause()
            case protocol.Undo() | protocol.Redo():
                before = drag.state
                if not (drag.undo() if isinstance(message, protocol.Undo) else drag.redo()):
                    raise ProtocolError("order", f"There is nothing to {message.type}.")
                timeline.find(drag.state)
                self._moved(before)
            case protocol.Reset():
                before = drag.state
                drag.reset()
                timeline.find(drag.state)
                self._moved(before)
            case protocol.Scrub():
                if message.index >= len(timeline):
                    raise ProtocolError("value", f"The timeline has {len(timeline)} states; index is {message.index}.")
                before = drag.state
                drag.restore(timeline.states[message.index], undoable=not self._scrubbing)
                self._scrubbing = True
                timeline.go(message.index)
                self._moved(before)
                self.screen.scrubbed = True
            case protocol.Mask():
                drag.set_mask(stroke_mask(message, drag.movable_mask, drag.image_size))
                self._masked()
            case protocol.Upload():
                drag.set_mask(live_pictures.png_mask(message.data, drag.image_size))
                self._masked()
                self._session_due = True
            case protocol.Settings():
                drag.configure(**message.changes)
                timeline.amend(drag.state)
            case _:
                raise ProtocolError("order", f"{message.type} has no meaning here.")

    @property
    def _required(self) -> tuple[DragSession, Timeline]:
        assert self.drag is not None
        assert self._timeline is not None
        return self.drag, self._timeline

    def _open(self, make: Callable[[], DragSession]) -> None:
        """Another picture in place of the present one, or the first; what cannot be opened takes nobody's place."""
        if self.drag is None:
            self.shared.room()  # before any work
        drag = make()
        drag.preview()  # fails here or not at all
        timeline = Timeline(drag.state)
        if self.drag is None:
            self.shared.enter(self)
        self.drag, self._timeline = drag, timeline
        network, block = drag.model.config, drag.config.feature_block
        self._feature_bytes = sum(8 * network.channels[b] * (4 << b) ** 2 for b in range(block + 1))
        self.screen.clear()
        self._stop("idle")
        self._clear_run()
        self._session_due = True

    def _clear_run(self) -> None:
        self._message, self._live, self._ending = "", False, "limit"
        self._budget = self._steps_left = 0
        self._stamp, self._moving, self._scrubbing = (0, None), None, False

    def _masked(self) -> None:
        drag, timeline = self._required
        timeline.amend(drag.state)
        if self.state in ("done", "waiting"):  # what is held is another thing now: the drag may go on
            self._stop("paused")
        while len(timeline) > 1 and held_bytes([*timeline.states, *drag.history]) > MAX_HELD_BYTES:
            if not drag.history.forget_oldest():  # first what undo would go back to, then the beginning of the timeline
                del timeline.states[0]
                timeline.position = max(0, timeline.position - 1)

    def _moved(self, before: SessionState) -> None:
        """The picture is another of its own states now."""
        drag, _ = self._required
        points = drag.state.handle_points is not None
        self._stop("done" if drag.done else "paused" if points else "idle")
        self.screen.loss, self.screen.scrubbed = None, False
        self.screen.owe()
        same_mask = before.movable_mask is drag.state.movable_mask
        self._session_due |= not same_mask or bool(changed_settings(before.config, drag.config))

    def _look(self, message: protocol.View) -> None:
        assert self.viewer is not None
        self.viewer.look(message)
        self.screen.choose(self.viewer)
        self.screen.owe()

    # --- running ----------------------------------------------------------------------------------------------------

    def _start(self, steps: int, live: bool, ending: str = "limit") -> None:
        drag, _ = self._required
        if drag.state.handle_points is None:
            raise ProtocolError("value", "No points are set: send points first.")
        self._budget = self._steps_left = steps
        self._live, self._ending = live, ending
        if drag.done:
            self._enter("waiting" if live else "done")
        else:
            self._enter("running")

    def _enter(self, state: str, message: str = "") -> None:
        now = time.monotonic()
        if state == "running" and self.state != "running":
            self.shared.running += 1
            self.screen.begin(self.viewer)
            self._next_status = now + STATUS_SECONDS
        elif state != "running" and self.state == "running":
            self.shared.running -= 1
            self.screen.rest(state == "waiting")
            self._ready_since = None
        self.state, self._message = state, message

    def _stop(self, state: str) -> None:
        self._live = False
        self._enter(state)

    def _pause(self) -> None:
        self._stop("paused" if self.state in ("running", "waiting") else self.state)

    def _step(self) -> None:
        drag, timeline = self._required
        if record_bytes(drag.state) > MAX_RECORD_BYTES:
            self._live = False
            self._enter(
                "limit", f"This picture has had {drag.steps} steps, as many as are kept; save it or begin anew."
            )
            return
        if not self._steps_left:
            self._enter(self._ending)
            return
        start = time.perf_counter()
        try:
            result = drag.step()
        except Exception as error:
            known = isinstance(error, DragError)
            self._fail(protocol.error("value", str(error)) if known else self._failure(error))
            return
        self._steps_left -= 1
        self.screen.loss, self.screen.stamp, self.screen.scrubbed = result.loss, self._stamp, False
        timeline.add(drag.state)
        seconds = time.perf_counter() - start
        self.screen.stats.stepped(seconds * 1e3)
        self.metrics.stage("step", seconds)
        if result.done:
            self._enter("waiting" if self._live else "done")
        elif not self._steps_left:
            self._enter(self._ending)

    # --- what is told and shown --------------------------------------------------------------------------------------

    def _show(self) -> None:
        if self.viewer is None or self.drag is None:
            return
        try:
            self.screen.show(self.viewer, self.drag, self.state == "running")
        except Exception as error:
            self._fail(self._failure(error))
            self.screen.owed = False
            self._tell_status()

    def _fail(self, told: dict[str, Any]) -> None:
        """Stopped by an error, of which the viewer is told; the picture is what it was."""
        self._live = False
        self._enter("failed", told["message"])
        self.metrics.error(told["code"])
        if self.viewer is not None:
            self.viewer.tell(told)

    def _tell_session(self) -> None:
        if self.viewer is not None and self.drag is not None and self._session_due:
            self._session_due = False
            self.viewer.tell(live_pictures.session_message(self.id, self.drag))

    def _tell_status(self) -> None:
        """The status, if it has changed; while running, once a second, with the statistics."""
        viewer, drag, now = self.viewer, self.drag, time.monotonic()
        if viewer is None or drag is None:
            return
        self._tell_session()
        running = self.state == "running"
        if running and self._last_status.get("state") == "running" and now < self._next_status:
            return
        status = self.status()
        if status != self._last_status:
            self._last_status = status
            viewer.tell(status)
        if running and now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            viewer.tell(self.screen.stats.message(viewer, self.metrics))

    def status(self) -> dict[str, Any]:
        drag, timeline = self._required
        status: dict[str, Any] = {
            "type": "status",
            "state": self.state,
            "step": drag.steps,
            "timeline": len(timeline),
            "position": timeline.position,
            "undo": drag.history.can_undo,
            "redo": drag.history.can_redo,
            "handles": drag.handle_points.tolist(),
            "targets": drag.target_points.tolist(),
        }
        if self._message:
            status["message"] = self._message
        return status

    @property
    def kept(self) -> list[SessionState]:
        """The states of the timeline."""
        return [] if self._timeline is None else list(self._timeline.states)
